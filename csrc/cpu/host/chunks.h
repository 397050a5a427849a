// Rows that lie in several tensors and count on from one to the next.
#pragma once

#include <algorithm>
#include <vector>

#include "check.h"

namespace d2llm {

struct Chunks {
    std::vector<at::Tensor> tensors;
    // The number of each one's first row, then the number of all.
    std::vector<int64_t> starts{0};

    // Tensors (n, width) of a type.
    Chunks(at::TensorList rows, at::ScalarType type, int64_t width) {
        for (const at::Tensor& some : rows) {
            expect(some, "rows", type, {-1, width});
            tensors.push_back(rows_of(some));
            starts.push_back(starts.back() + some.size(0));
        }
    }

    // Which one holds a row.
    int64_t of(int64_t row) const {
        return std::upper_bound(starts.begin(), starts.end() - 1, row) - starts.begin() - 1;
    }
};

}  // namespace d2llm
