#include "json_reader.hpp"

#include <algorithm>
#include <limits>
#include <unordered_set>

#include "text.hpp"
#include "unicode.hpp"

namespace tgate {

namespace {

// What is deeper is nobody's record, and code that follows it could run out of stack.
constexpr int kMostDepth = 64;
// An object that keeps its order looks through all keys for each new one.
constexpr std::size_t kMostOrderedKeys = 4096;

template <class J>
J parse(std::string_view text, std::size_t most_keys) {
  if (text.substr(0, 3) == "\xef\xbb\xbf") throw std::invalid_argument("unexpected UTF-8 BOM");
  std::vector<std::unordered_set<std::string>> keys;  // of the objects that are open
  const auto check = [&](int depth, typename J::parse_event_t event, J& parsed) {
    using Event = typename J::parse_event_t;
    if (event == Event::object_start) keys.emplace_back();
    if (event == Event::object_end) keys.pop_back();
    if ((event == Event::object_start || event == Event::array_start) && depth >= kMostDepth) {
      throw std::invalid_argument("it is nested more than " +
                                  std::to_string(kMostDepth) + " deep");
    }
    if (event == Event::key) {
      const auto& key = parsed.template get_ref<const std::string&>();
      if (!keys.back().insert(key).second) {
        throw std::invalid_argument("the key " + quote(key) + " is there twice");
      }
      if (keys.back().size() > most_keys) {
        throw std::invalid_argument("it has an object of more than " + std::to_string(most_keys) +
                                    " keys");
      }
    }
    return true;
  };
  try {
    return J::parse(text.begin(), text.end(), check);
  } catch (const nlohmann::json::exception& error) {
    // "[json.exception.parse_error.101] parse error at line ...": the reason alone
    const std::string reason = one_line(error.what());
    const auto bracket = reason.find("] ");
    throw std::invalid_argument(bracket == std::string::npos ? reason : reason.substr(bracket + 2));
  }
}

}  // namespace

Json parse_json(std::string_view text) { return parse<Json>(text, kMostOrderedKeys); }

nlohmann::json parse_large_json(std::string_view text) {
  return parse<nlohmann::json>(text, std::numeric_limits<std::size_t>::max());
}

std::string inside_bundle(const std::string& path) {
  std::vector<std::string> parts;
  bool leaves = path.empty() || path[0] == '/' || path.find('\\') != std::string::npos ||
                path.find('\0') != std::string::npos;
  for (std::size_t begin = 0; begin <= path.size() && !leaves;) {
    const std::size_t end = std::min(path.find('/', begin), path.size());
    const std::string part = path.substr(begin, end - begin);
    leaves = part == "..";
    if (!part.empty() && part != ".") parts.push_back(part);
    begin = end + 1;
  }
  if (leaves) return "path " + quote(path) + " leaves the bundle";
  const std::string plain = parts.empty() ? "." : join(parts, "/");
  if (plain != path || parts.empty()) {
    return "path " + quote(path) + " is not in its plain form " + quote(plain);
  }
  const std::u32string text = decode_utf8(path);
  if (!std::all_of(text.begin(), text.end(), is_printable)) {
    return "path " + quote(path) + " has characters that cannot be printed";
  }
  return {};
}

bool is_plain_name(const std::string& name) {
  return !name.empty() && name.size() <= 64 && name[0] != '.' &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                  c == '_' || c == '.' || c == '+' || c == '-';
         });
}

void check_name(const std::string& name, const std::string& path) {
  if (!is_plain_name(name)) {
    throw RecordError(path, "name " + quote(name) + " is not a plain name");
  }
}

std::int64_t Value::integer() const {
  if (!json_->is_number_integer()) refuse("it must be a whole number");
  if (json_->is_number_unsigned() &&
      json_->get<std::uint64_t>() >
          static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) {
    refuse("it must be below 2^63");
  }
  return json_->get<std::int64_t>();
}

std::int64_t Value::integer_from(std::int64_t least, std::int64_t most) const {
  const std::int64_t value = integer();
  if (value < least) refuse("it must be at least " + std::to_string(least));
  if (value > most) refuse("it must be at most " + std::to_string(most));
  return value;
}

std::uint64_t Value::bytes() const {
  const std::int64_t value = integer();
  if (value < 0) refuse("it must be at least 0");
  return static_cast<std::uint64_t>(value);
}

double Value::number() const {
  if (!json_->is_number()) refuse("it must be a number");
  return json_->get<double>();
}

bool Value::boolean() const {
  if (!json_->is_boolean()) refuse("it must be true or false");
  return json_->get<bool>();
}

std::string Value::string() const {
  if (!json_->is_string()) refuse("it must be a text");
  return json_->get<std::string>();
}

std::string Value::name() const {
  std::string text = string();
  check_name(text, path_);
  return text;
}

std::string Value::one_of(const std::vector<std::string>& values) const {
  if (json_->is_string()) {
    const auto& text = json_->get_ref<const std::string&>();
    if (std::find(values.begin(), values.end(), text) != values.end()) return text;
  }
  std::vector<std::string> quoted;
  for (const std::string& value : values) quoted.push_back(quote(value));
  refuse("it must be one of " + join(quoted));
}

std::string Value::bundle_path() const {
  std::string path = string();
  if (const std::string fault = inside_bundle(path); !fault.empty()) refuse(fault);
  return path;
}

std::string Value::sha256() const {
  std::string text = string();
  const bool hex = std::all_of(text.begin(), text.end(), [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
  });
  if (text.size() != 64 || !hex) refuse("it must be 64 digits of 0-9 and a-f");
  return text;
}

std::vector<Value> Value::array() const {
  if (!json_->is_array()) refuse("it must be a list");
  std::vector<Value> values;
  values.reserve(json_->size());
  for (const Json& item : *json_) {
    values.emplace_back(item, path_ + "." + std::to_string(values.size()), unknown_);
  }
  return values;
}

std::vector<std::string> Value::strings() const {
  return list_of<std::string>(*this, [](const Value& item) { return item.string(); });
}

std::vector<std::string> Value::names() const {
  return list_of<std::string>(*this, [](const Value& item) { return item.name(); });
}

void Value::check_items(std::size_t items, std::size_t least, std::size_t most) const {
  if (items < least) refuse("it must have at least " + std::to_string(least) + " entries");
  if (items > most) {
    refuse("it must have at most " + std::to_string(most) + " entries, not " +
           std::to_string(items));
  }
}

Named<Value> Value::object() const {
  if (!json_->is_object()) refuse("it must be an object");
  Named<Value> values;
  for (const auto& [key, item] : json_->items()) {
    values.add(key, {item, path_ + "." + key, unknown_});
  }
  return values;
}

Fields::Fields(const Value& value)
    : object_(&value.json()), path_(value.path()), unknown_(value.unknown()) {
  if (!object_->is_object()) value.refuse("it must be an object");
}

std::string Fields::path_of(const std::string& name) const {
  return path_.empty() ? name : path_ + "." + name;
}

Value Fields::required(const char* name) {
  if (std::optional<Value> value = optional(name)) return *value;
  throw RecordError(path_of(name), "it is missing");
}

std::optional<Value> Fields::optional(const char* name) {
  read_.emplace_back(name);
  const auto found = object_->find(name);
  if (found == object_->end()) return std::nullopt;
  return Value(*found, path_of(name), unknown_);
}

std::optional<Value> Fields::optional_not_null(const char* name) {
  std::optional<Value> value = optional(name);
  return value && value->null() ? std::nullopt : value;
}

void Fields::end() const {
  if (unknown_ == Unknown::ignored) return;
  for (const auto& [key, value] : object_->items()) {
    if (std::find(read_.begin(), read_.end(), key) == read_.end()) {
      throw RecordError(path_of(key), "no field has that name");
    }
  }
}

}  // namespace tgate
