#include "openvino_model.hpp"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <numeric>
#include <utility>
#include <vector>

#include <openvino/core/graph_util.hpp>
#include <openvino/op/ops.hpp>

namespace tgate {
namespace {

namespace op = ov::op;

using Constants = std::map<std::pair<ov::element::Type, ov::Shape>,
                           std::vector<std::shared_ptr<op::v0::Constant>>>;

std::shared_ptr<op::v0::Constant> integers(const std::vector<std::int64_t>& values) {
  return op::v0::Constant::create(ov::element::i64, {values.size()}, values);
}

// Gives constants the memory of equal ones of the models before, whatever their names.
void share_constants(ov::Model& model, Constants& known) {
  for (const auto& node : model.get_ops()) {
    const auto constant = ov::as_type_ptr<op::v0::Constant>(node);
    if (!constant) continue;
    auto& others = known[{constant->get_element_type(), constant->get_shape()}];
    const auto equal = std::find_if(others.begin(), others.end(), [&](const auto& other) {
      return std::memcmp(other->get_data_ptr(), constant->get_data_ptr(),
                         constant->get_byte_size()) == 0;
    });
    if (equal == others.end()) {
      others.push_back(constant);
    } else {
      ov::replace_node(constant, std::make_shared<op::v0::Constant>(**equal));
    }
  }
}

// Writes group norms as what OpenVINO's CPU plugin does, but not in the body of an `If`.
void decompose_group_norms(ov::Model& model) {
  for (const auto& node : model.get_ops()) {
    const auto norm = ov::as_type_ptr<op::v12::GroupNormalization>(node);
    if (!norm) continue;
    const ov::Output<ov::Node> sample = norm->input_value(0);
    const auto in_groups =
        std::make_shared<op::v1::Reshape>(sample, integers({0, norm->get_num_groups(), -1}), true);
    const auto normal = std::make_shared<op::v6::MVN>(
        in_groups, integers({2}), true, static_cast<float>(norm->get_epsilon()),
        op::MVNEpsMode::INSIDE_SQRT);
    const auto reshaped = std::make_shared<op::v1::Reshape>(
        normal, std::make_shared<op::v3::ShapeOf>(sample), false);
    // Channels are the second axis, whatever follows.
    std::vector<std::int64_t> axes(sample.get_partial_shape().size() - 2);
    std::iota(axes.begin(), axes.end(), std::int64_t{1});
    const auto by_channel = [&](std::size_t input) {
      return std::make_shared<op::v0::Unsqueeze>(norm->input_value(input), integers(axes));
    };
    const auto scaled = std::make_shared<op::v1::Multiply>(reshaped, by_channel(1));
    ov::replace_node(norm, std::make_shared<op::v1::Add>(scaled, by_channel(2)));
  }
}

// A model without inputs whose outputs are empty, of the types and ranks of another's.
std::shared_ptr<ov::Model> empty_outputs(const ov::Model& model) {
  ov::ResultVector results;
  for (const auto& output : model.outputs()) {
    const ov::Shape none(output.get_partial_shape().size(), 0);
    results.push_back(std::make_shared<op::v0::Result>(
        std::make_shared<op::v0::Constant>(output.get_element_type(), none)));
  }
  return std::make_shared<ov::Model>(results, ov::ParameterVector{});
}

}  // namespace

void keep_sinusoids(ov::Model& model) {
  for (const auto& node : model.get_ops()) {
    if (ov::is_type<op::v0::Sin>(node) || ov::is_type<op::v0::Cos>(node)) {
      model.add_output(node->output(0));
    }
  }
}

std::string tensor_name(const std::string& graph, const std::string& name) {
  return graph + "/" + name;
}

std::shared_ptr<ov::Model> join_models(
    const std::map<std::string, std::shared_ptr<ov::Model>>& models) {
  Constants constants;
  ov::ParameterVector parameters;
  ov::ResultVector results;
  for (const auto& [graph, model] : models) {
    share_constants(*model, constants);
    decompose_group_norms(*model);
    const auto runs = std::make_shared<op::v0::Parameter>(ov::element::boolean, ov::Shape{});
    runs->output(0).set_names({graph});
    parameters.push_back(runs);
    const auto branch = std::make_shared<op::v8::If>(runs);
    const std::shared_ptr<ov::Model> nothing = empty_outputs(*model);
    branch->set_then_body(model);
    branch->set_else_body(nothing);
    for (const auto& inner : model->get_parameters()) {
      const auto outer = std::make_shared<op::v0::Parameter>(inner->get_element_type(),
                                                             inner->get_partial_shape());
      outer->output(0).set_names({tensor_name(graph, inner->output(0).get_any_name())});
      parameters.push_back(outer);
      branch->set_input(outer->output(0), inner, nullptr);
    }
    for (std::size_t index = 0; index < model->get_results().size(); ++index) {
      const auto& inner = model->get_results()[index];
      const auto outer = std::make_shared<op::v0::Result>(
          branch->set_output(inner, nothing->get_results()[index]));
      outer->output(0).set_names({tensor_name(graph, inner->output(0).get_any_name())});
      results.push_back(outer);
    }
  }
  return std::make_shared<ov::Model>(results, parameters);
}

}  // namespace tgate
