// The valid tokens of every sequence of a padded or packed batch, by address.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "kernels.h"

namespace d2llm {

struct Sequences {
    std::vector<std::vector<int64_t>> tokens;  // position of each in units of rows of (B * L) or (T,)
    int64_t outer, inner, length;              // strides in bytes of sequences and tokens; L, or 0 where packed

    int64_t size() const { return static_cast<int64_t>(tokens.size()); }
    // Addresses of the tokens of sequence `b` in a tensor of this layout that starts at `data`.
    template <class Pointer, class Byte>
    std::vector<Pointer> rows(int64_t b, Byte* data) const {
        std::vector<Pointer> found;
        found.reserve(tokens[b].size());
        for (int64_t token : tokens[b])
            found.push_back(data + (length ? token / length * outer + token % length * inner : token * inner));
        return found;
    }
};

inline Sequences sequences_of(const at::Tensor& x, const std::optional<at::Tensor>& mask,
                              const std::optional<at::Tensor>& offsets) {
    Sequences found;
    if (offsets) {
        const int64_t* at = offsets->const_data_ptr<int64_t>();
        found.tokens.resize(offsets->size(0) - 1);
        for (int64_t b = 0; b < found.size(); ++b)
            for (int64_t token = at[b]; token < at[b + 1]; ++token) found.tokens[b].push_back(token);
        found.outer = 0;
        found.inner = x.stride(0) * x.element_size();
        found.length = 0;
        return found;
    }
    const int64_t length = x.size(1);
    const bool* valid = mask ? mask->const_data_ptr<bool>() : nullptr;
    found.tokens.resize(x.size(0));
    for (int64_t b = 0; b < found.size(); ++b)
        for (int64_t l = 0; l < length; ++l)
            if (!valid || valid[b * length + l]) found.tokens[b].push_back(b * length + l);
    found.outer = x.stride(0) * x.element_size();
    found.inner = x.stride(1) * x.element_size();
    found.length = length;
    return found;
}

// Tokens of a chunk: what is read for the scores is still in L2 for the weighted sum. It depends on nothing but D, so
// that a sequence is cut the same way wherever it stands.
inline int64_t chunk_tokens(int64_t width) {
    const int64_t fits = (int64_t{1} << 17) / (width > 0 ? width : 1) & ~int64_t{1};
    return fits < 16 ? 16 : fits > kMaxTokens ? kMaxTokens : fits;
}

}  // namespace d2llm
