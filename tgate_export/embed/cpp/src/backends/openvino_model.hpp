// OpenVINO models that share weights, which are packed once.
#pragma once

#include <map>
#include <memory>
#include <string>

#include <openvino/core/model.hpp>

namespace tgate {

// Lets a model that is compiled for bf16 compute sines and cosines of its inputs in fp32.
//
// Timesteps, sizes and their products with frequencies reach 1000 and more, where bf16 has steps of
// 4 radians. OpenVINO's CPU plugin lowers no layer between the last matrix product or convolution
// and an output, so they become outputs, which nobody reads.
void keep_sinusoids(ov::Model& model);

// What `join_models` calls a graph's input or output.
std::string tensor_name(const std::string& graph, const std::string& name);

// One model of several, which it uses up. OpenVINO packs weights into layouts of its own, once for
// every compiled model, but only once for a weight that lies at one address. So equal weights
// become one, and each graph the body of an `If` of its own.
//
// An input with the graph's name, a boolean, says whether a graph is run. Where it is, the others
// that begin with its name, see `tensor_name`, are its inputs and outputs; where it is not, its
// inputs are not read and its outputs are empty.
std::shared_ptr<ov::Model> join_models(
    const std::map<std::string, std::shared_ptr<ov::Model>>& models);

}  // namespace tgate
