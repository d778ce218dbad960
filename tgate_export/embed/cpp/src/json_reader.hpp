// Typed, strict reading of JSON records: first fault first, named by its path.
#pragma once

#include <cstdint>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include <tgate/manifest.hpp>

namespace tgate {

using Json = nlohmann::ordered_json;  // objects keep the order of the file

// A fault in a record: `field` is the path of what is wrong, such as "graphs.full.file".
struct RecordError : std::runtime_error {
  RecordError(std::string path, const std::string& message)
      : std::runtime_error(message), field(std::move(path)) {}
  std::string field;
};

// Parses UTF-8 text. Throws std::invalid_argument with the parser's reason.
Json parse_json(std::string_view text);
// The same for objects of many keys, whose order is of no interest.
nlohmann::json parse_large_json(std::string_view text);

std::string inside_bundle(const std::string& path);  // "" or why it is no plain path in a bundle
// Names become names of files, and of what a server or another language calls things.
bool is_plain_name(const std::string& name);
void check_name(const std::string& name, const std::string& path);  // throws RecordError at `path`

// Of a tensor's dimensions; TensorRT has room for no more.
constexpr std::size_t kMostDims = 8;

constexpr std::int64_t kMostInt = std::numeric_limits<std::int32_t>::max();

// What a record of a newer minor version may have: fields that this reader does not know.
enum class Unknown { refused, ignored };

// A value at its path, read as one type or refused.
class Value {
 public:
  Value(const Json& json, std::string path, Unknown unknown = Unknown::refused)
      : json_(&json), path_(std::move(path)), unknown_(unknown) {}

  const Json& json() const { return *json_; }
  const std::string& path() const { return path_; }
  Unknown unknown() const { return unknown_; }
  [[noreturn]] void refuse(const std::string& message) const { throw RecordError(path_, message); }

  std::int64_t integer() const;
  // By default up to what an int holds: products of two of them fit an int64.
  std::int64_t integer_from(std::int64_t least, std::int64_t most = kMostInt) const;
  std::uint64_t bytes() const;
  double number() const;
  bool boolean() const;
  std::string string() const;
  std::string name() const;  // see `is_plain_name`
  std::string one_of(const std::vector<std::string>& values) const;
  std::string bundle_path() const;
  std::string sha256() const;
  std::vector<Value> array() const;
  std::vector<std::string> strings() const;
  std::vector<std::string> names() const;
  Named<Value> object() const;
  bool null() const { return json_->is_null(); }
  void check_items(std::size_t items, std::size_t least, std::size_t most) const;

 private:
  const Json* json_;
  std::string path_;
  Unknown unknown_;
};

// The fields of an object. Read them in the order of the schema, then call `end`.
class Fields {
 public:
  explicit Fields(const Value& value);

  Value required(const char* name);
  std::optional<Value> optional(const char* name);
  std::optional<Value> optional_not_null(const char* name);
  void end() const;  // refuses what was not read

 private:
  std::string path_of(const std::string& name) const;

  const Json* object_;
  std::string path_;
  Unknown unknown_;
  std::vector<std::string> read_;
};

template <class T, class Read>
std::vector<T> list_of(const Value& value, Read read) {
  std::vector<T> items;
  for (const Value& item : value.array()) items.push_back(read(item));
  return items;
}

// An object whose keys are plain names.
template <class T, class Read>
Named<T> named(const Value& value, Read read) {
  Named<T> items;
  for (const auto& [name, item] : value.object()) {
    check_name(name, item.path() + ".[key]");
    items.add(name, read(item));
  }
  return items;
}

}  // namespace tgate
