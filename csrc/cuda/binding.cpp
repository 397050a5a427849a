// The kernels as operators of torch: addresses, sizes and strides of tensors that the package has made ready. What it
// relies on is checked here once more, because the kernels cannot.

#include <ATen/core/Tensor.h>
#include <torch/library.h>

#include <cstdlib>
#include <optional>
#include <string>
#include <tuple>

#include "hopper/launch.h"
#include "launch.h"

#ifdef D2LLM_EMULATED
#define D2LLM_DEVICE CPU
#else
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>

#include "check.h"
#define D2LLM_DEVICE CUDA
#endif

namespace d2llm {
namespace {

using at::Tensor;
using Optional = std::optional<Tensor>;

// The device of a tensor and its current stream, for as long as it lives.
class Place {
  public:
#ifdef D2LLM_EMULATED
    explicit Place(const Tensor&) {}
    cudaStream_t stream() const { return nullptr; }
#else
    explicit Place(const Tensor& tensor) : guard_(tensor.device()) {}
    cudaStream_t stream() const { return c10::cuda::getCurrentCUDAStream(); }

  private:
    c10::cuda::CUDAGuard guard_;
#endif
};

// Whether the kernels for compute capability 9.0 are to be used here: nothing has shown yet that they are faster.
bool try_hopper() {
    const char* wanted = std::getenv("D2LLM_KERNELS_EXPERIMENTAL");
    if (!wanted || std::string(wanted) != "1") return false;
#ifdef D2LLM_EMULATED
    return true;
#else
    int device = 0, major = 0, minor = 0;
    check(cudaGetDevice(&device), "device", "");
    check(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), "device", "");
    check(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), "device", "");
    return major == 9 && minor == 0;
#endif
}

Element element_of(const Tensor& tensor) {
    const auto type = tensor.scalar_type();
    if (type == at::kFloat) return Element::kFloat32;
    if (type == at::kHalf) return Element::kFloat16;
    TORCH_CHECK(type == at::kBFloat16, "expected float32, float16 or bfloat16, got ", type);
    return Element::kBFloat16;
}

// A tensor of this dtype on the device of `like`, whose rows are contiguous.
void expect(const Tensor& tensor, const char* name, const Tensor& like, at::ScalarType type) {
    TORCH_CHECK(tensor.scalar_type() == type, name, ": expected ", type, ", got ", tensor.scalar_type());
    TORCH_CHECK(tensor.device() == like.device(), name, ": expected device ", like.device(), ", got ", tensor.device());
    TORCH_CHECK(!tensor.dim() || tensor.size(-1) < 2 || tensor.stride(-1) == 1, name, ": expected contiguous rows");
}

void expect_whole(const Tensor& tensor, const char* name, const Tensor& like, at::ScalarType type, int64_t least) {
    expect(tensor, name, like, type);
    TORCH_CHECK(tensor.is_contiguous() && tensor.numel() >= least, name, ": expected ", least,
                " contiguous elements, got ", tensor.sizes());
}

Pairs pairs_of(const Tensor& a, const Tensor& b, bool given) {
    expect(b, "b", a, a.scalar_type());
    expect(a, "a", a, a.scalar_type());
    TORCH_CHECK(a.dim() == 2 && b.dim() == 2 && a.size(1) == b.size(1) && a.size(1) < (1 << 24) &&
                    (!given || a.size(0) == b.size(0)),
                "a, b: expected (Nq, F) and (Np, F), got ", a.sizes(), " and ", b.sizes());
    return {a.const_data_ptr(), b.const_data_ptr(), given ? 1 : a.size(0),       b.size(0),
            a.stride(0),        b.stride(0),        static_cast<int>(a.size(1)), given};
}

int64_t count_of(const Pairs& pairs) { return pairs.queries * pairs.passages; }

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
    if (!count_of(pairs)) return;
    const bool keys = z.scalar_type() == at::kLong;
    expect(z, "z", a, keys ? at::kLong : at::kFloat);
    TORCH_CHECK(z.numel() == count_of(pairs), "z: expected ", count_of(pairs), " scores, got ", z.sizes());
    if (features) expect_whole(*features, "features", a, a.scalar_type(), b.numel());
    const Place place(a);
    const ScoresArguments arguments{pairs,
                                    branch_of(a, weight, bias, out_weight, out_bias),
                                    keys ? nullptr : z.mutable_data_ptr<float>(),
                                    keys ? z.mutable_data_ptr<int64_t>() : nullptr,
                                    features ? features->mutable_data_ptr() : nullptr,
                                    given ? 0 : z.stride(0),
                                    first_passage};
    const Element element = element_of(a);
    if (try_hopper() && hopper_iem_scores_takes(arguments, element))
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
    return try_hopper() && hopper_iem_scores_fp8_takes(fp8_of(a, b, weight, scale));
}

void scores_fp8(const Tensor& a, const Tensor& b, const Tensor& weight, const Tensor& scale, const Tensor& bias,
                const Tensor& out_weight, const Tensor& out_bias, Tensor& z, int64_t first_passage) {
    Fp8ScoresArguments arguments = fp8_of(a, b, weight, scale);
    if (!count_of(arguments.scores.pairs)) return;
    const bool keys = z.scalar_type() == at::kLong;
    expect(z, "z", a, keys ? at::kLong : at::kFloat);
    TORCH_CHECK(z.numel() == count_of(arguments.scores.pairs), "z: expected (Nq, Np) scores, got ", z.sizes());
    for (const auto& [tensor, name, least] :
         {std::tuple(bias, "bias", a.size(1)), std::tuple(out_weight, "out_weight", a.size(1)),
          std::tuple(out_bias, "out_bias", int64_t{1})})
        expect_whole(tensor, name, a, at::kBFloat16, least);
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

int64_t tiles_of_slopes(const Tensor& a, const Tensor& b, bool given) {
    return slopes_tiles(pairs_of(a, b, given), element_of(a));
}

std::tuple<int64_t, int64_t> plan_of_inputs(const Tensor& a, const Tensor& b, bool given) {
    const InputsPlan plan = inputs_plan(pairs_of(a, b, given), element_of(a));
    return {plan.tiles, plan.blocks};
}

int64_t blocks_of_weights(const Tensor& weight) { return weights_blocks(static_cast<int>(weight.size(0))); }

void slopes(const Tensor& a, const Tensor& b, const Tensor& weight, const Tensor& bias, const Tensor& out_weight,
            const Tensor& out_bias, const Tensor& dz, const Optional& dfeatures, Tensor& dpre, Tensor& dbias,
            Tensor& dout_weight, bool given) {
    const Pairs pairs = pairs_of(a, b, given);
    if (!count_of(pairs)) return;
    const int64_t width = pairs.width, sums = slopes_tiles(pairs, element_of(a)) * width;
    expect(dz, "dz", a, at::kFloat);
    TORCH_CHECK(dz.numel() == count_of(pairs), "dz: expected ", count_of(pairs), " slopes, got ", dz.sizes());
    if (dfeatures) expect_whole(*dfeatures, "dfeatures", a, a.scalar_type(), b.numel());
    expect_whole(dpre, "dpre", a, a.scalar_type(), count_of(pairs) * width);
    expect_whole(dbias, "dbias", a, at::kFloat, sums);
    expect_whole(dout_weight, "dout_weight", a, at::kFloat, sums);
    const Place place(a);
    iem_slopes({pairs, branch_of(a, weight, bias, out_weight, out_bias), dz.const_data_ptr(),
                dfeatures ? dfeatures->const_data_ptr() : nullptr, given ? 0 : dz.stride(0), dpre.mutable_data_ptr(),
                dbias.mutable_data_ptr<float>(), dout_weight.mutable_data_ptr<float>()},
               element_of(a), place.stream());
}

void inputs(const Tensor& a, const Tensor& b, const Tensor& transposed, const Tensor& dpre, const Optional& da,
            Tensor& db, int64_t share, bool given) {
    const Pairs pairs = pairs_of(a, b, given);
    if (!count_of(pairs)) return;
    const int64_t width = pairs.width;
    TORCH_CHECK(share > 0 && given != da.has_value(), "share, da: expected a positive share, and da for a grid alone");
    expect_whole(transposed, "transposed", a, a.scalar_type(), width * width);
    expect_whole(dpre, "dpre", a, a.scalar_type(), count_of(pairs) * width);
    if (da) expect_whole(*da, "da", a, at::kFloat, pairs.queries * inputs_plan(pairs, element_of(a)).tiles * width);
    expect_whole(db, "db", a, at::kFloat, (pairs.queries + share - 1) / share * b.numel());
    const Place place(a);
    iem_inputs({pairs, transposed.const_data_ptr(), dpre.const_data_ptr(), da ? da->mutable_data_ptr<float>() : nullptr,
                db.mutable_data_ptr<float>(), share},
               element_of(a), place.stream());
}

void weights(const Tensor& a, const Tensor& b, const Tensor& dpre, Tensor& dweight, bool given) {
    const Pairs pairs = pairs_of(a, b, given);
    if (!count_of(pairs)) return;
    const int64_t width = pairs.width;
    expect_whole(dpre, "dpre", a, a.scalar_type(), count_of(pairs) * width);
    expect_whole(dweight, "dweight", a, at::kFloat, dweight.size(0) * width * width);
    const Place place(a);
    iem_weights({pairs, dpre.const_data_ptr(), dweight.mutable_data_ptr<float>(), static_cast<int>(dweight.size(0))},
                element_of(a), place.stream());
}

Tokens tokens_of(const Tensor& x, const Optional& mask, const Optional& offsets) {
    expect(x, "x", x, x.scalar_type());
    Tokens tokens{};
    tokens.x = x.const_data_ptr();
    tokens.sequences = offsets ? offsets->numel() - 1 : x.size(0);
    tokens.length = offsets ? x.size(0) : x.size(1);
    tokens.x_stride_b = offsets ? 0 : x.stride(0);
    tokens.x_stride_l = x.stride(-2);
    tokens.width = static_cast<int>(x.size(-1));
    if (offsets) {
        expect_whole(*offsets, "offsets", x, at::kLong, 1);
        tokens.offsets = offsets->const_data_ptr<int64_t>();
    }
    if (mask) {
        TORCH_CHECK(mask->scalar_type() == at::kByte && mask->device() == x.device() && mask->dim() == 2,
                    "mask: expected uint8 (B, L) beside x, got ", mask->scalar_type(), " ", mask->sizes());
        tokens.mask = mask->const_data_ptr<uint8_t>();
        tokens.mask_stride_b = mask->stride(0);
        tokens.mask_stride_l = mask->stride(1);
    }
    return tokens;
}

std::tuple<int64_t, int64_t, int64_t> pool_sizes(const Tensor& x, const Tensor& u, const Optional& mask,
                                                 const Optional& offsets) {
    return {pool_slots(tokens_of(x, mask, offsets)), pool_splits(x.size(-1), x.element_size()), pool_heads(u.size(0))};
}

std::tuple<int64_t, int64_t, int64_t, int64_t> limits_of_pool(const Tensor& x) {
    const PoolLimits limits = pool_limits(element_of(x));
    return {limits.forward_heads, limits.backward_heads, limits.slot, limits.slice};
}

void pool(const Tensor& x, const Tensor& u, const Optional& mask, const Optional& offsets, Tensor& pooled, Tensor& lse,
          Tensor& scores, Tensor& parts, Tensor& counters) {
    const Tokens tokens = tokens_of(x, mask, offsets);
    if (!tokens.sequences) return;
    const auto [slots, splits, heads] = pool_sizes(x, u, mask, offsets);
    expect(u, "u", x, x.scalar_type());
    expect(pooled, "pooled", x, x.scalar_type());
    const int64_t slot = pool_limits(element_of(x)).slot;
    TORCH_CHECK(u.size(0) <= heads && pooled.stride(1) == x.size(-1), "pooled: expected heads one after the other");
    expect(lse, "lse", x, at::kFloat);
    expect_whole(scores, "scores", x, at::kFloat, slots * heads * slot);
    expect_whole(parts, "parts", x, at::kFloat, splits > 1 ? slots * splits * heads * slot : 0);
    expect_whole(counters, "counters", x, at::kInt, 1 + tokens.sequences + slots);
    const Place place(x);
    const PoolArguments arguments{tokens,
                                  u.const_data_ptr(),
                                  static_cast<int>(u.size(0)),
                                  u.stride(0),
                                  pooled.mutable_data_ptr(),
                                  lse.mutable_data_ptr<float>(),
                                  pooled.stride(0),
                                  lse.stride(0),
                                  scores.mutable_data_ptr<float>(),
                                  parts.mutable_data_ptr<float>(),
                                  counters.mutable_data_ptr<int>()};
    const Element element = element_of(x);
    if (try_hopper() && hopper_pool_forward_takes(arguments, element))
        hopper_pool_forward(arguments, element, place.stream());
    else
        pool_forward(arguments, element, place.stream());
}

void pool_gradients(const Tensor& dpooled, const Optional& dlse, const Tensor& x, const Tensor& u, const Optional& mask,
                    const Optional& offsets, Tensor& products, Tensor& weights, Tensor& dx, const Optional& sums,
                    Tensor& du, bool first, bool last) {
    const Tokens tokens = tokens_of(x, mask, offsets);
    const auto [slots, splits, heads] = pool_sizes(x, u, mask, offsets);
    if (!slots) return;
    expect(u, "u", x, x.scalar_type());
    expect(dpooled, "dpooled", x, x.scalar_type());
    const PoolLimits limits = pool_limits(element_of(x));
    TORCH_CHECK(u.size(0) <= limits.backward_heads, "u: expected at most ", limits.backward_heads, " heads, got ",
                u.size(0));
    expect_whole(products, "products", x, at::kFloat, slots * 2 * heads * limits.slot);
    expect_whole(weights, "weights", x, x.scalar_type(), slots * 2 * heads * limits.slot);
    expect_whole(dx, "dx", x, x.scalar_type(), x.numel());
    if (sums) expect_whole(*sums, "sums", x, at::kFloat, x.numel());
    expect_whole(du, "du", x, at::kFloat, du.size(0) * u.numel());
    if (dlse) TORCH_CHECK(dlse->scalar_type() == at::kFloat, "dlse: expected float32, got ", dlse->scalar_type());
    const Place place(x);
    pool_backward({tokens, u.const_data_ptr(), dpooled.const_data_ptr(), dlse ? dlse->const_data_ptr<float>() : nullptr,
                   static_cast<int>(u.size(0)), u.stride(0), dpooled.stride(0), dpooled.stride(1),
                   dlse ? dlse->stride(0) : 0, dlse ? dlse->stride(1) : 0, products.mutable_data_ptr<float>(),
                   weights.mutable_data_ptr(), dx.mutable_data_ptr(), sums ? sums->mutable_data_ptr<float>() : nullptr,
                   du.mutable_data_ptr<float>(), static_cast<int>(du.size(0)), first, last},
                  element_of(x), place.stream());
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
    m.def("slopes_tiles(Tensor a, Tensor b, bool given) -> int");
    m.def("inputs_plan(Tensor a, Tensor b, bool given) -> (int, int)");
    m.def("weights_blocks(Tensor weight) -> int");
    m.def(
        "slopes(Tensor a, Tensor b, Tensor weight, Tensor bias, Tensor out_weight, Tensor out_bias, Tensor dz,"
        " Tensor? dfeatures, Tensor(a!) dpre, Tensor(b!) dbias, Tensor(c!) dout_weight, bool given) -> ()");
    m.def(
        "inputs(Tensor a, Tensor b, Tensor transposed, Tensor dpre, Tensor? da, Tensor(a!) db, int share, bool given)"
        " -> ()");
    m.def("weights(Tensor a, Tensor b, Tensor dpre, Tensor(a!) dweight, bool given) -> ()");
    m.def("pool_limits(Tensor x) -> (int, int, int, int)");
    m.def("pool_sizes(Tensor x, Tensor u, Tensor? mask, Tensor? offsets) -> (int, int, int)");
    m.def(
        "pool(Tensor x, Tensor u, Tensor? mask, Tensor? offsets, Tensor(a!) pooled, Tensor(b!) lse, Tensor(c!) scores,"
        " Tensor(d!) parts, Tensor(e!) counters) -> ()");
    m.def(
        "pool_gradients(Tensor dpooled, Tensor? dlse, Tensor x, Tensor u, Tensor? mask, Tensor? offsets,"
        " Tensor(a!) products, Tensor(b!) weights, Tensor(c!) dx, Tensor? sums, Tensor(d!) du, bool first,"
        " bool last) -> ()");
}

TORCH_LIBRARY_IMPL(d2llm_cuda, D2LLM_DEVICE, m) {
    m.impl("scores", d2llm::scores);
    m.impl("takes_fp8", d2llm::takes_fp8);
    m.impl("scores_fp8", d2llm::scores_fp8);
    m.impl("slopes_tiles", d2llm::tiles_of_slopes);
    m.impl("inputs_plan", d2llm::plan_of_inputs);
    m.impl("weights_blocks", d2llm::blocks_of_weights);
    m.impl("slopes", d2llm::slopes);
    m.impl("inputs", d2llm::inputs);
    m.impl("weights", d2llm::weights);
    m.impl("pool_limits", d2llm::limits_of_pool);
    m.impl("pool_sizes", d2llm::pool_sizes);
    m.impl("pool", d2llm::pool);
    m.impl("pool_gradients", d2llm::pool_gradients);
}
