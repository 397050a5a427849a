// Rows of any type, taken by number out of many chunks: a copy of each chunk's share would cost an operation of torch.

#include <ATen/Parallel.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <cstring>

#include "chunks.h"

namespace d2llm {
namespace {

// Rows that are worth a thread.
constexpr int64_t kRows = 256;

// Rows (C, W) at some numbers (C,) int64, of chunks (n, W) of any one type.
at::Tensor take_rows(at::TensorList rows, const at::Tensor& numbers) {
    TORCH_CHECK(!rows.empty() && rows[0].dim() == 2, "rows: expected at least one chunk (n, W)");
    const Chunks chunks(rows, rows[0].scalar_type(), rows[0].size(1));
    expect(numbers, "numbers", at::kLong, {-1});
    const at::Tensor flat = numbers.contiguous();
    const int64_t count = flat.size(0), *number = flat.const_data_ptr<int64_t>();
    for (int64_t n = 0; n < count; ++n)
        TORCH_CHECK(number[n] >= 0 && number[n] < chunks.starts.back(), "numbers: expected them below ",
                    chunks.starts.back(), ", got ", number[n]);
    at::Tensor out = at::empty({count, rows[0].size(1)}, rows[0].options());
    const int64_t bytes = rows[0].size(1) * rows[0].element_size();
    char* to = static_cast<char*>(out.mutable_data_ptr());
    at::parallel_for(0, count, kRows, [&](int64_t begin, int64_t end) {
        for (int64_t n = begin; n < end; ++n) {
            const int64_t c = chunks.of(number[n]);
            std::memcpy(to + n * bytes, row_of(chunks.tensors[c], number[n] - chunks.starts[c]), bytes);
        }
    });
    return out;
}

}  // namespace
}  // namespace d2llm

TORCH_LIBRARY_FRAGMENT(d2llm_cpu, m) {
    m.def("take_rows(Tensor[] rows, Tensor numbers) -> Tensor",
          torch::dispatch(c10::DispatchKey::CPU, d2llm::take_rows));
}
