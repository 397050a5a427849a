// The valid tokens of every sequence of a padded or packed batch, by address.
#pragma once

#include <ATen/core/Tensor.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <optional>
#include <vector>

#include "../isa/kernels.h"

namespace d2llm {

class Sequences {
  public:
    // x (B, L, D) with a mask (B, L) or none, or (T, D) with offsets (B + 1,).
    Sequences(const at::Tensor& x, const std::optional<at::Tensor>& mask, const std::optional<at::Tensor>& offsets)
        : length_(offsets ? 0 : x.size(1)), inner_(x.stride(-2) * x.element_size()) {
        const int64_t batch = offsets ? offsets->size(0) - 1 : x.size(0);
        const int64_t* at = offsets ? offsets->const_data_ptr<int64_t>() : nullptr;
        const bool* valid = mask ? mask->const_data_ptr<bool>() : nullptr;
        for (int64_t b = 0; b < batch; ++b) {
            start_.push_back(offsets ? at[b] * inner_ : b * x.stride(0) * x.element_size());
            std::vector<int64_t>& tokens = tokens_.emplace_back(offsets ? at[b + 1] - at[b] : length_);
            std::iota(tokens.begin(), tokens.end(), 0);
            if (!valid) continue;
            int64_t kept = 0;
            for (int64_t l = 0; l < length_; ++l)
                if (valid[b * length_ + l]) tokens[kept++] = l;
            tokens.resize(kept);
        }
    }

    int64_t size() const { return static_cast<int64_t>(tokens_.size()); }

    // Addresses of the tokens of sequence `b` in a tensor of this layout that starts at `data`.
    template <class Pointer, class Byte>
    std::vector<Pointer> rows(int64_t b, Byte* data) const {
        std::vector<Pointer> found;
        found.reserve(tokens_[b].size());
        for (int64_t token : tokens_[b]) found.push_back(data + start_[b] + token * inner_);
        return found;
    }

    // Zeros in the rows, `bytes` long, of the tokens that sequence `b` does not have.
    template <class Byte>
    void clear_others(int64_t b, Byte* data, int64_t bytes) const {
        int64_t next = 0;
        for (int64_t token : tokens_[b]) {
            for (; next < token; ++next) std::memset(data + start_[b] + next * inner_, 0, bytes);
            ++next;
        }
        for (; next < length_; ++next) std::memset(data + start_[b] + next * inner_, 0, bytes);
    }

  private:
    int64_t length_;                            // of padded sequences
    int64_t inner_;                             // distance of tokens, in bytes
    std::vector<int64_t> start_;                // of each sequence, in bytes
    std::vector<std::vector<int64_t>> tokens_;  // positions of the valid ones
};

// Tokens of a chunk, `row` bytes each: what is read for the scores is still in cache for the weighted sum, and the sum,
// read and written for each chunk, costs little beside it. It depends on nothing else, so that a sequence is cut the
// same way wherever it stands.
inline int64_t chunk_tokens(int64_t row) {
    const int64_t fits = (int64_t{1} << 20) / std::max<int64_t>(row, 1) & ~int64_t{1};
    return std::clamp<int64_t>(fits, 16, kMaxTokens);
}

}  // namespace d2llm
