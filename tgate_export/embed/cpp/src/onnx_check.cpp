#include "onnx_check.hpp"

#include <charconv>
#include <exception>
#include <limits>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include <tgate/error.hpp>

#include "text.hpp"

namespace tgate {
namespace {

// Three messages each, of the hundred that protobuf allows.
constexpr int kMostGraphsInGraphs = 32;

// The bytes are no ModelProto, or one that two readers could read in two ways.
struct NotOnnx : std::exception {};

enum class Wire { varint = 0, fixed64 = 1, bytes = 2, fixed32 = 5 };

struct Field {
  std::uint32_t number;
  Wire wire;
  std::uint64_t value;     // of a varint
  std::string_view bytes;  // of all others

  std::string_view message() const {
    if (wire != Wire::bytes) throw NotOnnx();
    return bytes;
  }
  std::uint64_t number_to(std::uint64_t most) const {
    if (wire != Wire::varint || value > most) throw NotOnnx();
    return value;
  }
};

// The fields of a message, one after another.
class Message {
 public:
  explicit Message(std::string_view bytes) : bytes_(bytes) {}

  bool next(Field& field) {
    if (at_ == bytes_.size()) return false;
    const std::uint64_t tag = varint();
    field.number = static_cast<std::uint32_t>(tag >> 3);
    field.wire = static_cast<Wire>(tag & 7);
    field.value = 0;
    if (tag > std::numeric_limits<std::uint32_t>::max() || field.number == 0) throw NotOnnx();
    switch (field.wire) {
      case Wire::varint: field.value = varint(); break;
      case Wire::fixed64: field.bytes = take(8); break;
      case Wire::fixed32: field.bytes = take(4); break;
      case Wire::bytes: field.bytes = take(varint()); break;
      default: throw NotOnnx();  // groups, which ONNX has none of
    }
    return true;
  }

  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (unsigned shift = 0; shift < 70; shift += 7) {
      const auto byte = static_cast<unsigned char>(take(1)[0]);
      if (shift == 63 && byte > 1) break;
      value |= static_cast<std::uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return value;
    }
    throw NotOnnx();
  }
  bool ended() const { return at_ == bytes_.size(); }

 private:
  std::string_view take(std::uint64_t count) {
    if (count > bytes_.size() - at_) throw NotOnnx();
    const std::string_view taken = bytes_.substr(at_, static_cast<std::size_t>(count));
    at_ += taken.size();
    return taken;
  }

  std::string_view bytes_;
  std::size_t at_ = 0;
};

// Fields that protobuf would merge, or of which it takes the last, where they are there twice.
class Once {
 public:
  void operator()(std::uint32_t number) {
    const std::uint32_t bit = 1U << (number % 32);
    if (number >= 32 || (seen_ & bit)) throw NotOnnx();
    seen_ |= bit;
  }

 private:
  std::uint32_t seen_ = 0;
};

// TensorProto.DataType: the bytes of an element, and the field of entries that holds it where
// raw_data does not. What else there is, packed or complex, no graph of a bundle has.
struct Type {
  std::uint64_t bytes;
  std::uint32_t field;
};
enum Typed : std::uint32_t { kFloats = 4, kInt32s, kStrings, kInt64s, kDoubles = 10, kUint64s };

std::optional<Type> type_of(std::uint64_t number) {
  switch (number) {
    case 1: return Type{4, kFloats};
    case 2:                            // uint8
    case 3:                            // int8
    case 9: return Type{1, kInt32s};   // bool
    case 4:                            // uint16
    case 5:                            // int16
    case 10:                           // float16
    case 16: return Type{2, kInt32s};  // bfloat16
    case 6: return Type{4, kInt32s};
    case 7: return Type{8, kInt64s};
    case 8: return Type{0, kStrings};  // never in raw_data
    case 11: return Type{8, kDoubles};
    case 12: return Type{4, kUint64s};
    case 13: return Type{8, kUint64s};
    default: return std::nullopt;
  }
}

struct Tensor {
  std::string name;
  std::uint64_t type = 0;
  std::optional<std::uint64_t> elements = 1;     // none: more than any file holds
  std::map<std::uint32_t, std::uint64_t> typed;  // entries by field
  std::uint64_t raw = 0;                         // bytes
  bool external = false;
  std::vector<std::pair<std::string, std::string>> external_data;

  void add(std::uint32_t field, std::uint64_t count) {
    if (count) typed[field] += count;
  }
};

void multiply(std::optional<std::uint64_t>& elements, std::uint64_t side) {
  constexpr std::uint64_t kMost = std::uint64_t{1} << 48;
  if (!elements) return;
  if (side > kMost || (side != 0 && *elements > kMost / side)) {
    elements.reset();  // a negative side, too
  } else {
    *elements *= side;
  }
}

std::pair<std::string, std::string> read_entry(std::string_view bytes) {
  std::pair<std::string, std::string> entry;
  Message message(bytes);
  Once once;
  for (Field field; message.next(field);) {
    once(field.number);
    if (field.number == 1) entry.first = field.message();
    if (field.number == 2) entry.second = field.message();
  }
  return entry;
}

// How many entries a field of numbers holds, packed or one alone.
std::uint64_t entries(const Field& field, Wire wire) {
  if (field.wire == wire) return 1;
  const std::string_view packed = field.message();
  const std::size_t size = wire == Wire::fixed32 ? 4 : 8;
  if (wire != Wire::varint) {
    if (packed.size() % size) throw NotOnnx();
    return packed.size() / size;
  }
  std::uint64_t count = 0;
  for (Message numbers(packed); !numbers.ended(); ++count) numbers.varint();
  return count;
}

Tensor read_tensor(std::string_view bytes) {
  Tensor tensor;
  Message message(bytes);
  Once once;
  for (Field field; message.next(field);) {
    switch (field.number) {
      case 1:  // dims
        if (field.wire == Wire::varint) {
          multiply(tensor.elements, field.value);
        } else {
          for (Message sides(field.message()); !sides.ended();) {
            multiply(tensor.elements, sides.varint());
          }
        }
        break;
      case 2:
        once(2);
        tensor.type = field.number_to(std::numeric_limits<std::int32_t>::max());
        break;
      case 3: throw NotOnnx();  // a part of a tensor, which no reader takes
      case kFloats: tensor.add(field.number, entries(field, Wire::fixed32)); break;
      case kDoubles: tensor.add(field.number, entries(field, Wire::fixed64)); break;
      case kInt32s:
      case kInt64s:
      case kUint64s: tensor.add(field.number, entries(field, Wire::varint)); break;
      case kStrings:
        field.message();
        tensor.add(field.number, 1);
        break;
      case 8:
        once(8);
        tensor.name = field.message();
        break;
      case 9:  // raw_data
        once(9);
        tensor.raw = field.message().size();
        break;
      case 13: tensor.external_data.push_back(read_entry(field.message())); break;
      case 14:
        once(14);
        tensor.external = field.number_to(1) == 1;
        break;
      default: break;
    }
  }
  return tensor;
}

class Check {
 public:
  Check(const std::optional<WeightsFile>& weights, const std::string& where)
      : weights_(weights), where_(where) {}

  void model(std::string_view bytes) const {
    Message message(bytes);
    bool has_graph = false;
    for (Field field; message.next(field);) {
      if (field.number == 7) {
        if (has_graph) throw NotOnnx();
        has_graph = true;
        graph(field.message(), 0);
      } else if (field.number == 20) {  // of training, which holds graphs, too
        fail("it has fields that this version does not know");
      } else if (field.number == 25) {
        function(field.message());
      }
    }
    if (!has_graph) throw NotOnnx();
  }

 private:
  void function(std::string_view bytes) const {
    Message message(bytes);
    for (Field field; message.next(field);) {
      if (field.number == 7) node(field.message(), 1);
      if (field.number == 11) attribute(field.message(), 1);
    }
  }

  void graph(std::string_view bytes, int depth) const {
    if (depth > kMostGraphsInGraphs) throw NotOnnx();
    Message message(bytes);
    std::set<std::string> names;
    for (Field field; message.next(field);) {
      if (field.number == 1) node(field.message(), depth);
      if (field.number == 15) sparse(field.message());
      if (field.number != 5) continue;
      const std::string name = tensor(field.message(), depth == 0);
      if (depth == 0 && (name.empty() || !names.insert(name).second)) {
        fail("tensor " + quote(name) + " is there twice, or has no name");
      }
    }
  }

  void node(std::string_view bytes, int depth) const {
    Message message(bytes);
    std::string name, domain;
    for (Field field; message.next(field);) {
      if (field.number == 3) name = field.message();
      if (field.number == 5) attribute(field.message(), depth);
      if (field.number == 7) domain = field.message();
    }
    // Others bring code or files with them: a node EPContext of com.microsoft names an engine.
    if (!domain.empty() && domain != "ai.onnx") {
      fail("node " + quote(name) + " is of the domain " + quote(domain));
    }
  }

  void attribute(std::string_view bytes, int depth) const {
    Message message(bytes);
    Once once;
    for (Field field; message.next(field);) {
      switch (field.number) {
        case 5:
          once(5);
          [[fallthrough]];
        case 10: tensor(field.message(), false); break;
        case 6:
          once(6);
          [[fallthrough]];
        case 11: graph(field.message(), depth + 1); break;
        case 22:
          once(22);
          [[fallthrough]];
        case 23: sparse(field.message()); break;
        default: break;
      }
    }
  }

  void sparse(std::string_view bytes) const {
    Message message(bytes);
    Once once;
    for (Field field; message.next(field);) {
      if (field.number != 1 && field.number != 2) continue;
      once(field.number);
      tensor(field.message(), false);
    }
  }

  // Returns its name.
  std::string tensor(std::string_view bytes, bool is_initializer) const {
    const Tensor found = read_tensor(bytes);
    const auto type = type_of(found.type);
    const bool external = found.external || !found.external_data.empty();
    if (external && !is_initializer) {
      refuse(found, "is in " + quote(value(found, "location")) + ", and is no initializer");
    }
    if (!found.elements || !type) refuse(found, "has no size that fits its shape");
    const std::uint64_t size = *found.elements * type->bytes;
    if (external) {
      if (!found.external || found.raw || !found.typed.empty()) {
        refuse(found, "says twice where its data is");
      }
      if (type->bytes == 0) refuse(found, "has no size that fits its shape");
      check_external(found, size);
      return found.name;
    }
    const auto entries = found.typed.find(type->field);
    const std::uint64_t has = entries == found.typed.end() ? 0 : entries->second;
    const bool others = found.typed.size() > (has ? 1U : 0U);
    const bool fits = found.raw ? found.raw == size && found.typed.empty()
                                : has == *found.elements && !others;
    if (!fits) refuse(found, "has no size that fits its shape");
    return found.name;
  }

  void check_external(const Tensor& found, std::uint64_t size) const {
    const std::string location = value(found, "location");
    if (!weights_ || location != weights_->name) {
      refuse(found, "is in " + quote(location) + ", not in the bundle's weights");
    }
    for (const auto& [key, text] : found.external_data) {
      if (key != "location" && key != "offset" && key != "length" && key != "checksum") {
        unclear(found);
      }
    }
    const std::uint64_t offset = count(found, "offset");
    const std::uint64_t length = count(found, "length");
    if (length != size) refuse(found, "has no size that fits its shape");
    if (offset > weights_->bytes || length > weights_->bytes - offset) {
      refuse(found, "is not within " + weights_->name);
    }
  }

  // What an external tensor says of itself, once.
  std::string value(const Tensor& found, const char* key) const {
    const std::string* text = nullptr;
    for (const auto& [name, entry] : found.external_data) {
      if (name != key) continue;
      if (text != nullptr) refuse(found, "says twice where its data is");
      text = &entry;
    }
    if (text == nullptr) unclear(found);
    return *text;
  }

  std::uint64_t count(const Tensor& found, const char* key) const {
    const std::string text = value(found, key);
    std::uint64_t number = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    if (text.empty() || error != std::errc() || end != text.data() + text.size()) unclear(found);
    return number;
  }

  [[noreturn]] void unclear(const Tensor& tensor) const {
    refuse(tensor, "does not say plainly where in " + (weights_ ? weights_->name : "a file") +
                       " it is");
  }
  [[noreturn]] void refuse(const Tensor& tensor, const std::string& fault) const {
    fail("tensor " + quote(tensor.name) + " " + fault);
  }
  [[noreturn]] void fail(const std::string& fault) const {
    throw Error(ErrorKind::bundle, where_ + ": " + fault + ": build the bundle again");
  }

  const std::optional<WeightsFile>& weights_;
  const std::string& where_;
};

}  // namespace

void check_onnx(std::string_view model, const std::optional<WeightsFile>& weights,
                const std::string& where) {
  try {
    Check(weights, where).model(model);
  } catch (const NotOnnx&) {
    throw Error(ErrorKind::bundle, where + ": it is not an ONNX model: build the bundle again");
  }
}

}  // namespace tgate
