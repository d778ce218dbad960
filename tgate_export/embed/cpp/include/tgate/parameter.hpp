// What a caller may set for a run: an entry of a bundle's table, and values.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace tgate {

// Entries by name, in the order of the file; a bundle has few of them.
template <class T>
class Named {
 public:
  using Entry = std::pair<std::string, T>;

  const T* find(std::string_view name) const {
    for (const Entry& entry : entries_) {
      if (entry.first == name) return &entry.second;
    }
    return nullptr;
  }
  bool contains(std::string_view name) const { return find(name) != nullptr; }
  void add(std::string name, T value) { entries_.emplace_back(std::move(name), std::move(value)); }
  bool empty() const { return entries_.empty(); }
  std::size_t size() const { return entries_.size(); }
  auto begin() const { return entries_.begin(); }
  auto end() const { return entries_.end(); }
  auto begin() { return entries_.begin(); }
  auto end() { return entries_.end(); }

 private:
  std::vector<Entry> entries_;
};

// An integer, a number, a choice, or a pair of pixels.
using Scalar = std::variant<std::int64_t, double, std::string, std::array<int, 2>>;
// For the whole call, or one for each prompt.
using ParameterValue = std::variant<Scalar, std::vector<Scalar>>;

enum class ParameterType { integer, number, choice, pair, image };

const char* name_of(ParameterType type);

struct Parameter {
  ParameterType type;
  std::optional<Scalar> default_value;  // none: the run makes one up, or takes none
  // Limits of integers and numbers: an integer or a number each.
  std::optional<Scalar> min;
  std::optional<Scalar> max;
  std::optional<Scalar> above;  // values are larger than this
  std::vector<std::string> choices;
  bool scaled = false;      // the default keeps its place in a run of another number of steps
  bool per_prompt = false;  // each prompt may have its own
  std::string unit;
  std::string because;  // why a value cannot be smaller
  std::string help;
};

}  // namespace tgate
