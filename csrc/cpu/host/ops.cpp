// Registration of the operators. d2llm_kernels/backends/cpu/ calls them from inside the package's own operators, which
// carry the fake implementations and the derivatives.

#include <torch/library.h>

#include "iem.h"
#include "in_batch.h"
#include "linear.h"
#include "pool.h"
#include "search.h"

namespace {

using In = const at::Tensor&;
using Optional = const std::optional<at::Tensor>&;

}  // namespace

TORCH_LIBRARY(d2llm_cpu, m) {
    using namespace d2llm;
    m.def("attn_pool(Tensor x, Tensor u, Tensor? mask, Tensor? offsets) -> (Tensor, Tensor)");
    m.def(
        "attn_pool_backward(Tensor dpooled, Tensor? dlse, Tensor x, Tensor u, Tensor? mask, Tensor? offsets)"
        " -> (Tensor, Tensor)");
    m.def("iem_scores(Tensor a, Tensor b, Tensor weight, Tensor bias, Tensor out_weight, Tensor out_bias) -> Tensor");
    m.def(
        "iem_scores_backward(Tensor dz, Tensor a, Tensor b, Tensor weight, Tensor bias, Tensor out_weight,"
        " Tensor out_bias) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
    m.def(
        "iem_pairs(Tensor a, Tensor b, Tensor weight, Tensor bias, Tensor out_weight, Tensor out_bias,"
        " bool return_features) -> (Tensor, Tensor)");
    m.def(
        "iem_pairs_backward(Tensor dz, Tensor? dfeatures, Tensor a, Tensor b, Tensor weight, Tensor bias,"
        " Tensor out_weight, Tensor out_bias) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)");
    m.def(
        "iem_topk(Tensor a, Tensor b, Tensor weight, Tensor bias, Tensor out_weight, Tensor out_bias, int k)"
        " -> (Tensor, Tensor)");
    m.def(
        "in_batch_terms(Tensor z_in_batch, Tensor z_hard, Tensor s_hard, Tensor? s_in_batch, Tensor? duplicates,"
        " float temperature) -> (Tensor, Tensor)");
    m.def(
        "in_batch_terms_backward(Tensor? dcross_entropy, Tensor? dpairwise, Tensor z_in_batch, Tensor z_hard,"
        " Tensor s_hard, Tensor? s_in_batch, Tensor? duplicates, float temperature) -> (Tensor, Tensor)");
    m.def("linear(Tensor x, Tensor weight, Tensor? bias) -> Tensor");
    m.def(
        "iem_scores_int8(Tensor a, Tensor b, Tensor scale, Tensor weight, Tensor bias, Tensor out_weight,"
        " Tensor out_bias) -> Tensor");
    m.class_<Search>("Search")
        .def(torch::init([](In weight, In bias, In out_weight, In out_bias, at::ScalarType passages) {
            return c10::make_intrusive<Search>(Branch{weight, bias, out_weight, out_bias}, passages);
        }))
        .def("topk", &Search::topk);
}

TORCH_LIBRARY_IMPL(d2llm_cpu, CPU, m) {
    using namespace d2llm;
    m.impl("attn_pool", attn_pool);
    m.impl("attn_pool_backward", attn_pool_backward);
    m.impl("iem_scores", [](In a, In b, In weight, In bias, In out_weight, In out_bias) {
        return iem_scores(a, b, {weight, bias, out_weight, out_bias});
    });
    m.impl("iem_scores_backward", [](In dz, In a, In b, In weight, In bias, In out_weight, In out_bias) {
        return iem_scores_backward(dz, a, b, {weight, bias, out_weight, out_bias});
    });
    m.impl("iem_pairs", [](In a, In b, In weight, In bias, In out_weight, In out_bias, bool return_features) {
        return iem_pairs(a, b, {weight, bias, out_weight, out_bias}, return_features);
    });
    m.impl("iem_pairs_backward",
           [](In dz, Optional dfeatures, In a, In b, In weight, In bias, In out_weight, In out_bias) {
               return iem_pairs_backward(dz, dfeatures, a, b, {weight, bias, out_weight, out_bias});
           });
    m.impl("iem_topk", [](In a, In b, In weight, In bias, In out_weight, In out_bias, int64_t k) {
        return Search({weight, bias, out_weight, out_bias}, a.scalar_type()).topk(a, b, std::nullopt, k);
    });
    m.impl("in_batch_terms", [](In z, In z_hard, In s_hard, Optional s, Optional duplicates, double temperature) {
        return in_batch_terms({z, z_hard, s_hard, s, duplicates, temperature});
    });
    m.impl("in_batch_terms_backward", [](Optional dcross_entropy, Optional dpairwise, In z, In z_hard, In s_hard,
                                         Optional s, Optional duplicates, double temperature) {
        return in_batch_terms_backward(dcross_entropy, dpairwise, {z, z_hard, s_hard, s, duplicates, temperature});
    });
    m.impl("linear", linear);
    m.impl("iem_scores_int8", [](In a, In b, In scale, In weight, In bias, In out_weight, In out_bias) {
        return iem_scores_int8(a, b, scale, {weight, bias, out_weight, out_bias});
    });
}
