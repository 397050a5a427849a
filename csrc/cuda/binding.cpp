// The kernels as operators of torch: addresses, sizes and strides of tensors that the package has made ready, and the
// workspaces that follow from them. What the kernels rely on is checked here once more, because they cannot; but for
// the contents of offsets, which are on the device and which the package makes rise. A kernel is launched on the device
// of its tensors, whichever is the current one.

#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/sum.h>
#include <ATen/ops/zeros.h>
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#include <torch/library.h>

#include <algorithm>
#include <optional>
#include <tuple>

#include "devices.h"
#include "hopper/launch.h"
#include "launch.h"

namespace d2llm {
namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

// The device of a tensor and its current stream, for as long as it lives.
class Place {
  public:
    explicit Place(const Tensor& tensor) : guard_(tensor.device()) {}
    cudaStream_t stream() const { return c10::cuda::getCurrentCUDAStream(); }

    // Whether its kernels are to be tried.
    bool hopper() const { return hopper_wanted && is_hopper(guard_.current_device().index()); }

  private:
    c10::cuda::CUDAGuard guard_;
};

Element element_of(const Tensor& tensor) {
    const auto type = tensor.scalar_type();
    if (type == at::kFloat) return Element::kFloat32;
    if (type == at::kHalf) return Element::kFloat16;
    TORCH_CHECK(type == at::kBFloat16, "expected float32, float16 or bfloat16, got ", type);
    return Element::kBFloat16;
}

// A tensor of this dtype on the device of `like`, whose rows are contiguous.
void expect(const Tensor& tensor, const char* name, const Tensor& like, at::ScalarType type) {
    TORCH_CHECK(tensor.defined(), name, ": expected a tensor, got None");
    TORCH_CHECK(tensor.scalar_type() == type, name, ": expected ", type, ", got ", tensor.scalar_type());
    TORCH_CHECK(tensor.device() == like.device(), name, ": expected device ", like.device(), ", got ", tensor.device());
    TORCH_CHECK(!tensor.dim() || tensor.size(-1) < 2 || tensor.stride(-1) == 1, name, ": expected contiguous rows");
}

void expect_whole(const Tensor& tensor, const char* name, const Tensor& like, at::ScalarType type, int64_t count) {
    expect(tensor, name, like, type);
    TORCH_CHECK(tensor.is_contiguous() && tensor.numel() == count, name, ": expected ", count,
                " contiguous elements, got ", tensor.sizes());
}

Pairs pairs_of(const Tensor& a, const Tensor& b, bool given) {
    expect(a, "a", a, a.scalar_type());
    expect(b, "b", a, a.scalar_type());
    TORCH_CHECK(a.dim() == 2 && b.dim() == 2 && a.size(1) == b.size(1) && a.size(1) > 0 && a.size(1) < (1 << 24) &&
                    (!given || a.size(0) == b.size(0)),
                "a, b: expected (Nq, F) and (Np, F), got ", a.sizes(), " and ", b.sizes());
    return {a.const_data_ptr(), b.const_data_ptr(), given ? 1 : a.size(0),       b.size(0),
            a.stride(0),        b.stride(0),        static_cast<int>(a.size(1)), given};
}

int64_t count_of(const Pairs& pairs) { return pairs.queries * pairs.passages; }

// A number for each pair: (Nq, Np) of a grid, (N,) of given ones.
void expect_numbers(const Tensor& tensor, const char* name, const Tensor& like, at::ScalarType type,
                    const Pairs& pairs) {
    expect(tensor, name, like, type);
    const bool fits = pairs.given
                          ? tensor.dim() == 1 && tensor.size(0) == pairs.passages
                          : tensor.dim() == 2 && tensor.size(0) == pairs.queries && tensor.size(1) == pairs.passages;
    TORCH_CHECK(fits, name, ": expected a number for each pair, ", count_of(pairs), ", got ", tensor.sizes());
}

// Scores, or keys that hold the number of a passage in 32 bits.
bool expect_scores(const Tensor& z, const Tensor& like, const Pairs& pairs, int64_t first_passage) {
    const bool keys = z.defined() && z.scalar_type() == at::kLong;
    expect_numbers(z, "z", like, keys ? at::kLong : at::kFloat, pairs);
    TORCH_CHECK(first_passage >= 0 && first_passage <= INT32_MAX - pairs.passages,
                "first_passage: expected 0 or more, and passages below 2^31, got ", first_passage);
    return keys;
}

Branch branch_of(const Tensor& a, const Tensor& weight, const Tensor& bias, const Tensor& out_weight,
                 const Tensor& out_bias) {
    const int64_t width = a.size(1);
    expect(weight, "weight", a, a.scalar_type());
    TORCH_CHECK(weight.dim() == 2 && weight.size(0) == width && weight.size(1) == width,
                "weight: expected (F, F), got ", weight.sizes());
    expect_whole(bias, "bias", a, a.scalar_type(), width);
    expect_whole(out_weight, "out_weight", a, a.scalar_type(), width);
    expect_whole(out_bias, "out_bias", a, a.scalar_type(), 1);
    return {weight.const_data_ptr(), bias.const_data_ptr(), out_weight.const_data_ptr(), out_bias.const_data_ptr(),
            weight.stride(0)};
}

void scores(const Tensor& a, const Tensor& b, const Tensor& weight, const Tensor& bias, const Tensor& out_weight,
            const Tensor& out_bias, Tensor& z, const Optional& features, bool given, int64_t first_passage) {
    const Pairs pairs = pairs_of(a, b, given);
    const bool keys = expect_scores(z, a, pairs, first_passage);
    const Element element = element_of(a);
    const Branch branch = branch_of(a, weight, bias, out_weight, out_bias);
    if (features) expect_whole(*features, "features", a, a.scalar_type(), b.numel());
    TORCH_CHECK(!features || given, "features: expected none of a grid, got ", features->sizes());
    if (!count_of(pairs)) return;
    const Place place(a);
    const ScoresArguments arguments{pairs,
                                    branch,
                                    keys ? nullptr : z.mutable_data_ptr<float>(),
                                    keys ? z.mutable_data_ptr<int64_t>() : nullptr,
                                    features ? features->mutable_data_ptr() : nullptr,
                                    given ? 0 : z.stride(0),
                                    first_passage};
    if (place.hopper() && hopper_iem_scores_takes(arguments, element))
        hopper_iem_scores(arguments, element, place.stream());
    else
        iem_scores(arguments, element, place.stream());
}

// Of a grid in bfloat16, with a weight in e4m3.
Fp8ScoresArguments fp8_of(const Tensor& a, const Tensor& b, const Tensor& weight, const Tensor& scale) {
    const Pairs pairs = pairs_of(a, b, false);
    expect(weight, "weight", a, at::kFloat8_e4m3fn);
    TORCH_CHECK(a.scalar_type() == at::kBFloat16 && weight.dim() == 2 && weight.size(0) == a.size(1) &&
                    weight.size(1) == a.size(1),
                "a, weight: expected bfloat16 and (F, F), got ", a.scalar_type(), " and ", weight.sizes());
    expect_whole(scale, "scale", a, at::kFloat, a.size(1));
    Fp8ScoresArguments arguments{};
    arguments.scores.pairs = pairs;
    arguments.scores.branch.weight = weight.const_data_ptr();
    arguments.scores.branch.weight_stride = weight.stride(0);
    arguments.weight_scale = scale.const_data_ptr<float>();
    return arguments;
}

bool takes_fp8(const Tensor& a, const Tensor& b, const Tensor& weight, const Tensor& scale) {
    const Place place(a);
    return place.hopper() && hopper_iem_scores_fp8_takes(fp8_of(a, b, weight, scale));
}

void scores_fp8(const Tensor& a, const Tensor& b, const Tensor& weight, const Tensor& scale, const Tensor& bias,
                const Tensor& out_weight, const Tensor& out_bias, Tensor& z, int64_t first_passage) {
    Fp8ScoresArguments arguments = fp8_of(a, b, weight, scale);
    const bool keys = expect_scores(z, a, arguments.scores.pairs, first_passage);
    for (const auto& [tensor, name, count] :
         {std::tuple(bias, "bias", a.size(1)), std::tuple(out_weight, "out_weight", a.size(1)),
          std::tuple(out_bias, "out_bias", int64_t{1})})
        expect_whole(tensor, name, a, at::kBFloat16, count);
    if (!count_of(arguments.scores.pairs)) return;
    arguments.scores.branch.bias = bias.const_data_ptr();
    arguments.scores.branch.out_weight = out_weight.const_data_ptr();
    arguments.scores.branch.out_bias = out_bias.const_data_ptr();
    arguments.scores.z = keys ? nullptr : z.mutable_data_ptr<float>();
    arguments.scores.keys = keys ? z.mutable_data_ptr<int64_t>() : nullptr;
    arguments.scores.stride = z.stride(0);
    arguments.scores.first_passage = first_passage;
    const Place place(a);
    hopper_iem_scores_fp8(arguments, place.stream());
}

Tensor floats(const Tensor& like, at::IntArrayRef sizes) { return at::empty(sizes, like.options().dtype(at::kFloat)); }

// Writes dpre and returns parts (2, tiles, F) of the gradients of bias and out_weight.
Tensor slopes(const Tensor& a, const Tensor& b, const Tensor& weight, const Tensor& bias, const Tensor& out_weight,
              const Tensor& out_bias, const Tensor& dz, const Optional& dfeatures, Tensor& dpre, bool given) {
    const Pairs pairs = pairs_of(a, b, given);
    const Branch branch = branch_of(a, weight, bias, out_weight, out_bias);
    const int64_t width = pairs.width, tiles = slopes_tiles(pairs, element_of(a));
    expect_numbers(dz, "dz", a, at::kFloat, pairs);
    if (dfeatures) expect_whole(*dfeatures, "dfeatures", a, a.scalar_type(), b.numel());
    TORCH_CHECK(!dfeatures || given, "dfeatures: expected none of a grid, got ", dfeatures->sizes());
    expect_whole(dpre, "dpre", a, a.scalar_type(), count_of(pairs) * width);
    Tensor sums = floats(a, {2, tiles, width});
    if (!count_of(pairs)) return sums;
    const Place place(a);
    iem_slopes({pairs, branch, dz.const_data_ptr(), dfeatures ? dfeatures->const_data_ptr() : nullptr,
                given ? 0 : dz.stride(0), dpre.mutable_data_ptr(), sums.mutable_data_ptr<float>(),
                sums.mutable_data_ptr<float>() + tiles * width},
               element_of(a), place.stream());
    return sums;
}

// Parts of da (Nq, parts, F), without elements for given pairs, and of db (parts, Np, F), from about `programs` blocks.
std::tuple<Tensor, Tensor> inputs(const Tensor& a, const Tensor& b, const Tensor& transposed, const Tensor& dpre,
                                  int64_t programs, bool given) {
    const Pairs pairs = pairs_of(a, b, given);
    TORCH_CHECK(count_of(pairs) > 0 && programs > 0, "a, b, programs: expected some, got ", a.sizes(), ", ", b.sizes(),
                " and ", programs);
    const int64_t width = pairs.width;
    expect_whole(transposed, "transposed", a, a.scalar_type(), width * width);
    expect_whole(dpre, "dpre", a, a.scalar_type(), count_of(pairs) * width);
    const InputsPlan plan = inputs_plan(pairs, element_of(a));
    const int64_t groups = std::min(pairs.queries, (programs + plan.blocks - 1) / plan.blocks);
    const int64_t share = (pairs.queries + groups - 1) / groups;
    Tensor da = given ? floats(a, {0}) : floats(a, {pairs.queries, plan.tiles, width});
    Tensor db = floats(a, {(pairs.queries + share - 1) / share, pairs.passages, width});
    const Place place(a);
    iem_inputs({pairs, transposed.const_data_ptr(), dpre.const_data_ptr(),
                given ? nullptr : da.mutable_data_ptr<float>(), db.mutable_data_ptr<float>(), share},
               element_of(a), place.stream());
    return {da, db};
}

void weights(const Tensor& a, const Tensor& b, const Tensor& dpre, Tensor& dweight, bool given) {
    const Pairs pairs = pairs_of(a, b, given);
    const int64_t width = pairs.width;
    expect_whole(dpre, "dpre", a, a.scalar_type(), count_of(pairs) * width);
    expect(dweight, "dweight", a, at::kFloat);
    TORCH_CHECK(dweight.is_contiguous() && dweight.dim() == 3 && dweight.size(1) == width && dweight.size(2) == width,
                "dweight: expected (parts, F, F), got ", dweight.sizes());
    if (!count_of(pairs)) return;
    const Place place(a);
    iem_weights({pairs, dpre.const_data_ptr(), dweight.mutable_data_ptr<float>(), static_cast<int>(dweight.size(0))},
                element_of(a), place.stream());
}

Tokens tokens_of(const Tensor& x, const Optional& mask, const Optional& offsets) {
    expect(x, "x", x, x.scalar_type());
    TORCH_CHECK(x.dim() == (offsets ? 2 : 3), "x: expected (B, L, D) or, with offsets, (T, D), got ", x.sizes());
    TORCH_CHECK(!mask || !offsets, "mask: expected none together with offsets");
    if (offsets) {
        expect(*offsets, "offsets", x, at::kLong);
        TORCH_CHECK(offsets->dim() == 1 && offsets->numel(), "offsets: expected (B + 1,), got ", offsets->sizes());
    }
    Tokens tokens{};
    tokens.x = x.const_data_ptr();
    tokens.sequences = offsets ? offsets->numel() - 1 : x.size(0);
    tokens.length = offsets ? x.size(0) : x.size(1);
    tokens.x_stride_b = offsets ? 0 : x.stride(0);
    tokens.x_stride_l = x.stride(-2);
    tokens.width = static_cast<int>(x.size(-1));
    if (offsets) tokens.offsets = offsets->const_data_ptr<int64_t>();
    if (mask) {
        TORCH_CHECK(mask->scalar_type() == at::kByte && mask->device() == x.device() && mask->dim() == 2 &&
                        mask->size(0) == x.size(0) && mask->size(1) == x.size(1),
                    "mask: expected uint8 (B, L) beside x, got ", mask->scalar_type(), " ", mask->sizes());
        tokens.mask = mask->const_data_ptr<uint8_t>();
        tokens.mask_stride_b = mask->stride(0);
        tokens.mask_stride_l = mask->stride(1);
    }
    return tokens;
}

void expect_queries(const Tensor& u, const Tensor& x) {
    expect(u, "u", x, x.scalar_type());
    TORCH_CHECK(u.dim() == 2 && u.size(1) == x.size(-1) && u.size(1) > 0, "u: expected (H, ", x.size(-1),
                "), D at least 1, got ", u.sizes());
}

// Row `first` of a tensor's dimension.
template <class T>
T* row_of(T* data, const Tensor& tensor, int dimension, int64_t first) {
    using Bytes = std::conditional_t<std::is_const_v<T>, const char, char>;
    return reinterpret_cast<T*>(reinterpret_cast<Bytes*>(data) + first * tensor.stride(dimension) * tensor.itemsize());
}

// Pooled (B, H, D) and lse (B, H), as many heads at a time as a launch takes.
std::tuple<Tensor, Tensor> pool(const Tensor& x, const Tensor& u, const Optional& mask, const Optional& offsets) {
    const Tokens tokens = tokens_of(x, mask, offsets);
    expect_queries(u, x);
    const int64_t heads = u.size(0), slots = pool_slots(tokens);
    const Element element = element_of(x);
    const PoolLimits limits = pool_limits(element);
    const int splits = pool_splits(tokens.width, static_cast<int>(x.element_size()));
    Tensor pooled = at::empty({tokens.sequences, heads, tokens.width}, x.options());
    Tensor lse = floats(x, {tokens.sequences, heads});
    const Place place(x);
    for (int64_t first = 0; first < heads && tokens.sequences; first += limits.forward_heads) {
        const int count = static_cast<int>(std::min<int64_t>(heads - first, limits.forward_heads));
        PoolArguments arguments{};
        arguments.tokens = tokens;
        arguments.u = row_of(u.const_data_ptr(), u, 0, first);
        arguments.heads = count;
        arguments.u_stride = u.stride(0);
        arguments.pooled = row_of(pooled.mutable_data_ptr(), pooled, 1, first);
        arguments.lse = lse.mutable_data_ptr<float>() + first;
        arguments.pooled_stride_b = pooled.stride(0);
        arguments.lse_stride_b = lse.stride(0);
        if (place.hopper() && hopper_pool_forward_takes(arguments, element)) {
            hopper_pool_forward(arguments, element, place.stream());
            continue;
        }
        const int64_t room = slots * pool_heads(count) * limits.slot;
        const Tensor scores = floats(x, {room}), parts = floats(x, {splits > 1 ? room * splits : 0});
        const Tensor counters = at::zeros({1 + tokens.sequences + slots}, x.options().dtype(at::kInt));
        arguments.scores = scores.mutable_data_ptr<float>();
        arguments.parts = parts.mutable_data_ptr<float>();
        arguments.counters = counters.mutable_data_ptr<int>();
        pool_forward(arguments, element, place.stream());
    }
    return {pooled, lse};
}

// dx, and du (H, D) in float32. Several groups of heads add up in float32 before dx is rounded.
std::tuple<Tensor, Tensor> pool_gradients(const Tensor& dpooled, const Optional& dlse, const Tensor& x, const Tensor& u,
                                          const Optional& mask, const Optional& offsets) {
    const Tokens tokens = tokens_of(x, mask, offsets);
    expect_queries(u, x);
    expect(dpooled, "dpooled", x, x.scalar_type());
    TORCH_CHECK(dpooled.dim() == 3 && dpooled.size(0) == tokens.sequences && dpooled.size(1) == u.size(0) &&
                    dpooled.size(2) == tokens.width,
                "dpooled: expected (B, H, D), got ", dpooled.sizes());
    if (dlse)
        TORCH_CHECK(dlse->scalar_type() == at::kFloat && dlse->device() == x.device() && dlse->dim() == 2 &&
                        dlse->size(0) == tokens.sequences && dlse->size(1) == u.size(0),
                    "dlse: expected float32 (B, H) beside x, got ", dlse->scalar_type(), " ", dlse->sizes());
    const int64_t heads = u.size(0), slots = pool_slots(tokens);
    const Element element = element_of(x);
    const PoolLimits limits = pool_limits(element);
    const auto whole = [&](at::ScalarType type) { return at::empty(x.sizes(), x.options().dtype(type)); };
    if (!x.numel() || !tokens.sequences)
        return {at::zeros(x.sizes(), x.options()), at::zeros(u.sizes(), x.options().dtype(at::kFloat))};
    Tensor dx = whole(x.scalar_type()), du = floats(x, {heads, tokens.width});
    const Tensor sums = heads > limits.backward_heads ? whole(at::kFloat) : Tensor();
    const int64_t groups = pool_groups(tokens, element);
    const Place place(x);
    for (int64_t first = 0; first < heads; first += limits.backward_heads) {
        const int count = static_cast<int>(std::min<int64_t>(heads - first, limits.backward_heads));
        const int64_t room = slots * 2 * pool_heads(count) * limits.slot;
        const Tensor products = floats(x, {room}), weights = at::empty({room}, x.options());
        Tensor mine = du.narrow(0, first, count);
        const Tensor parts = groups > 1 ? floats(x, {groups, count, tokens.width}) : mine;
        PoolBackwardArguments arguments{};
        arguments.tokens = tokens;
        arguments.u = row_of(u.const_data_ptr(), u, 0, first);
        arguments.dpooled = row_of(dpooled.const_data_ptr(), dpooled, 1, first);
        arguments.dlse = dlse ? row_of(dlse->const_data_ptr<float>(), *dlse, 1, first) : nullptr;
        arguments.heads = count;
        arguments.u_stride = u.stride(0);
        arguments.dpooled_stride_b = dpooled.stride(0);
        arguments.dpooled_stride_h = dpooled.stride(1);
        arguments.dlse_stride_b = dlse ? dlse->stride(0) : 0;
        arguments.dlse_stride_h = dlse ? dlse->stride(1) : 0;
        arguments.products = products.mutable_data_ptr<float>();
        arguments.weights = weights.mutable_data_ptr();
        arguments.dx = dx.mutable_data_ptr();
        arguments.sums = sums.defined() ? sums.mutable_data_ptr<float>() : nullptr;
        arguments.du = parts.mutable_data_ptr<float>();
        arguments.groups = static_cast<int>(groups);
        arguments.first = first == 0;
        arguments.last = first + count >= heads;
        pool_backward(arguments, element, place.stream());
        if (groups > 1) at::sum_out(mine, parts, 0);
    }
    return {dx, du};
}

}  // namespace
}  // namespace d2llm

TORCH_LIBRARY(d2llm_cuda, m) {
    m.def(
        "scores(Tensor a, Tensor b, Tensor weight, Tensor bias, Tensor out_weight, Tensor out_bias, Tensor(a!) z,"
        " Tensor? features, bool given, int first_passage) -> ()");
    m.def("takes_fp8(Tensor a, Tensor b, Tensor weight, Tensor scale) -> bool");
    m.def(
        "scores_fp8(Tensor a, Tensor b, Tensor weight, Tensor scale, Tensor bias, Tensor out_weight, Tensor out_bias,"
        " Tensor(a!) z, int first_passage) -> ()");
    m.def(
        "slopes(Tensor a, Tensor b, Tensor weight, Tensor bias, Tensor out_weight, Tensor out_bias, Tensor dz,"
        " Tensor? dfeatures, Tensor(a!) dpre, bool given) -> Tensor");
    m.def("inputs(Tensor a, Tensor b, Tensor transposed, Tensor dpre, int programs, bool given) -> (Tensor, Tensor)");
    m.def("weights(Tensor a, Tensor b, Tensor dpre, Tensor(a!) dweight, bool given) -> ()");
    m.def("pool(Tensor x, Tensor u, Tensor? mask, Tensor? offsets) -> (Tensor, Tensor)");
    m.def(
        "pool_gradients(Tensor dpooled, Tensor? dlse, Tensor x, Tensor u, Tensor? mask, Tensor? offsets)"
        " -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(d2llm_cuda, CUDA, m) {
    m.impl("scores", d2llm::scores);
    m.impl("takes_fp8", d2llm::takes_fp8);
    m.impl("scores_fp8", d2llm::scores_fp8);
    m.impl("slopes", d2llm::slopes);
    m.impl("inputs", d2llm::inputs);
    m.impl("weights", d2llm::weights);
    m.impl("pool", d2llm::pool);
    m.impl("pool_gradients", d2llm::pool_gradients);
}
