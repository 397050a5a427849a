// The losses over all pairs of a batch: shapes and semantics as in d2llm_kernels/operators/in_batch.py. Tensors are
// float on the CPU, duplicates bool.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cmath>
#include <utility>

#include "../isa/dispatch.h"
#include "check.h"
#include "memory.h"

namespace d2llm {
namespace {

// A batch, by reference: its tensors live as long as the call that they came with.
struct InBatch {
    const at::Tensor& z;                          // (B, B)
    const at::Tensor& z_hard;                     // (B, K)
    const at::Tensor& s_hard;                     // (B, K)
    const std::optional<at::Tensor>& s;           // (B, B)
    const std::optional<at::Tensor>& duplicates;  // (B, B)
    double temperature;
};

void check(const InBatch& inputs) {
    expect(inputs.z, "z_in_batch", at::kFloat, {-1, -1});
    const int64_t batch = inputs.z.size(0);
    expect_shape(inputs.z, "z_in_batch", {batch, batch});
    expect(inputs.z_hard, "z_hard", at::kFloat, {batch, -1});
    expect(inputs.s_hard, "s_hard", at::kFloat, inputs.z_hard.sizes());
    if (inputs.s) expect(*inputs.s, "s_in_batch", at::kFloat, {batch, batch});
    if (inputs.duplicates) expect(*inputs.duplicates, "duplicates", at::kBool, {batch, batch});
    TORCH_CHECK(inputs.temperature > 0 && std::isfinite(static_cast<float>(1 / inputs.temperature)),
                "temperature: expected a number above 0 whose inverse is finite in float32, got ", inputs.temperature);
}

// Triples that make a thread worth while; columns count as some more of them.
constexpr int64_t kGrain = 32768, kColumnCost = 4;

at::Tensor lines_of(const at::Tensor& tensor) {
    return tensor.size(-1) <= 1 || tensor.stride(-1) == 1 ? tensor : tensor.contiguous();
}

at::Tensor lines_of(const std::optional<at::Tensor>& tensor) { return tensor ? lines_of(*tensor) : at::Tensor(); }

// A call's tensors, row by row.
class Batch {
  public:
    explicit Batch(const InBatch& inputs)
        : z_(lines_of(inputs.z)),
          z_hard_(lines_of(inputs.z_hard)),
          s_hard_(lines_of(inputs.s_hard)),
          s_(lines_of(inputs.s)),
          duplicates_(lines_of(inputs.duplicates)),
          slope_(1 / inputs.temperature) {}

    int64_t size() const { return z_.size(0); }
    int64_t hard() const { return z_hard_.size(1); }

    // function(row, its number) for all rows, shared out over threads.
    template <class Function>
    void each(const Kernels& table, Function function) const {
        const int64_t columns = z_.size(1), cost = columns * (hard() + kColumnCost);
        at::parallel_for(0, size(), kGrain / (cost + 1) + 1, [&](int64_t begin, int64_t end) {
            const int64_t room = 3 * (columns + kBatchBlock) + (4 + table.strip) * (hard() + table.strip);
            const at::Tensor scratch = at::empty({room}, at::kFloat);
            for (int64_t i = begin; i < end; ++i) {
                const float* s = s_.defined() ? line(s_, i) : nullptr;
                const uint8_t* left_out = duplicates_.defined()
                                              ? reinterpret_cast<const uint8_t*>(duplicates_.const_data_ptr<bool>()) +
                                                    i * duplicates_.stride(0)
                                              : nullptr;
                function(BatchRow{line(z_, i), s, left_out, columns, i, line(z_hard_, i), line(s_hard_, i), hard(),
                                  slope_, scratch.mutable_data_ptr<float>()},
                         i);
            }
        });
    }

  private:
    static const float* line(const at::Tensor& tensor, int64_t i) {
        return tensor.const_data_ptr<float>() + i * tensor.stride(0);
    }

    at::Tensor z_, z_hard_, s_hard_, s_, duplicates_;
    float slope_;
};

// cross_entropy and pairwise, (B,) each.
std::tuple<at::Tensor, at::Tensor> in_batch_terms(const InBatch& inputs) {
    check(inputs);
    const Batch batch(inputs);
    const Kernels& table = kernels();
    at::Tensor cross_entropy = at::empty({batch.size()}, inputs.z.options());
    at::Tensor pairwise = at::empty({batch.size()}, inputs.z.options());
    float *to = cross_entropy.mutable_data_ptr<float>(), *to_pairs = pairwise.mutable_data_ptr<float>();
    batch.each(table, [&](const BatchRow& row, int64_t i) { table.in_batch(row, to + i, to_pairs + i); });
    return {cross_entropy, pairwise};
}

// Gradients of z and z_hard.
std::tuple<at::Tensor, at::Tensor> in_batch_terms_backward(const std::optional<at::Tensor>& dcross_entropy,
                                                           const std::optional<at::Tensor>& dpairwise,
                                                           const InBatch& inputs) {
    check(inputs);
    for (const auto& [slopes, name] : {std::pair{&dcross_entropy, "dcross_entropy"}, {&dpairwise, "dpairwise"}})
        if (*slopes) expect(**slopes, name, at::kFloat, {inputs.z.size(0)});
    const Batch batch(inputs);
    const Kernels& table = kernels();
    at::Tensor dz = fresh(inputs.z.sizes(), inputs.z.options());
    at::Tensor dz_hard = at::empty(inputs.z_hard.sizes(), inputs.z_hard.options());
    float *to = dz.mutable_data_ptr<float>(), *to_hard = dz_hard.mutable_data_ptr<float>();
    auto slope = [](const std::optional<at::Tensor>& tensor, int64_t i) {
        return tensor ? tensor->const_data_ptr<float>()[i * tensor->stride(0)] : 0;
    };
    batch.each(table, [&](const BatchRow& row, int64_t i) {
        table.in_batch_gradient(row, {slope(dcross_entropy, i), slope(dpairwise, i), to + i * dz.stride(0),
                                      to_hard + i * dz_hard.stride(0)});
    });
    return {dz, dz_hard};
}

}  // namespace
}  // namespace d2llm

TORCH_LIBRARY_FRAGMENT(d2llm_cpu, m) {
    using In = const at::Tensor&;
    using Optional = const std::optional<at::Tensor>&;
    m.def(
        "in_batch_terms(Tensor z_in_batch, Tensor z_hard, Tensor s_hard, Tensor? s_in_batch, Tensor? duplicates,"
        " float temperature) -> (Tensor, Tensor)",
        torch::dispatch(c10::DispatchKey::CPU,
                        [](In z, In z_hard, In s_hard, Optional s, Optional duplicates, double temperature) {
                            return d2llm::in_batch_terms({z, z_hard, s_hard, s, duplicates, temperature});
                        }));
    m.def(
        "in_batch_terms_backward(Tensor? dcross_entropy, Tensor? dpairwise, Tensor z_in_batch, Tensor z_hard,"
        " Tensor s_hard, Tensor? s_in_batch, Tensor? duplicates, float temperature) -> (Tensor, Tensor)",
        torch::dispatch(c10::DispatchKey::CPU, [](Optional dcross_entropy, Optional dpairwise, In z, In z_hard,
                                                  In s_hard, Optional s, Optional duplicates, double temperature) {
            return d2llm::in_batch_terms_backward(dcross_entropy, dpairwise,
                                                  {z, z_hard, s_hard, s, duplicates, temperature});
        }));
}
