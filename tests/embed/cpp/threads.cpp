// Two pipelines in two threads draw what one draws alone: threads BUNDLE.
#include <cstdio>
#include <string>
#include <thread>
#include <vector>

#include <tgate/pipeline.hpp>

namespace {

struct Job {
  std::string scheduler;
  std::uint64_t seed;
  std::vector<tgate::Image> images;
  std::string error;
};

void draw(const std::string& bundle, Job& job) {
  try {
    tgate::Pipeline pipeline(bundle);
    for (int round = 0; round < 2; ++round) {
      tgate::Request request;
      request.prompt = tgate::Texts{"a red circle", "a blue square on a yellow background"};
      request.num_inference_steps = 4;
      request.gate_step = 2;
      request.scheduler = job.scheduler;
      request.seed = job.seed;
      job.images = pipeline(request).images;
    }
  } catch (const std::exception& error) {
    job.error = error.what();
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const std::vector<Job> jobs{{"ddim", 1, {}, {}}, {"pndm", 2, {}, {}}};
  std::vector<Job> together = jobs, alone = jobs;
  std::vector<std::thread> threads;
  for (Job& job : together) threads.emplace_back(draw, argv[1], std::ref(job));
  for (std::thread& thread : threads) thread.join();
  for (std::size_t i = 0; i < jobs.size(); ++i) {
    draw(argv[1], alone[i]);
    if (!together[i].error.empty()) {
      std::fprintf(stderr, "%s\n", together[i].error.c_str());
      return 1;
    }
    for (std::size_t image = 0; image < 2; ++image) {
      if (together[i].images.at(image).rgb != alone[i].images.at(image).rgb) {
        std::fprintf(stderr, "job %zu: image %zu differs\n", i, image);
        return 1;
      }
    }
  }
  std::puts("two pipelines in two threads drew what each draws alone");
}
