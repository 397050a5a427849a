// Registration of the operators. d2llm_kernels/cpu.py calls them from inside the package's own operators, which carry
// the fake implementations and the derivatives.

#include <torch/library.h>

#include "iem.h"
#include "in_batch.h"
#include "linear.h"
#include "pool.h"

TORCH_LIBRARY(d2llm_cpu, m) {
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
    m.def(
        "iem_topk_int8(Tensor a, Tensor b, Tensor scale, Tensor weight, Tensor bias, Tensor out_weight,"
        " Tensor out_bias, int k, int candidates) -> (Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(d2llm_cpu, CPU, m) {
    m.impl("attn_pool", d2llm::attn_pool);
    m.impl("attn_pool_backward", d2llm::attn_pool_backward);
    m.impl("iem_scores", d2llm::iem_scores);
    m.impl("iem_scores_backward", d2llm::iem_scores_backward);
    m.impl("iem_pairs", d2llm::iem_pairs);
    m.impl("iem_pairs_backward", d2llm::iem_pairs_backward);
    m.impl("iem_topk", d2llm::iem_topk);
    m.impl("in_batch_terms", d2llm::in_batch_terms);
    m.impl("in_batch_terms_backward", d2llm::in_batch_terms_backward);
    m.impl("linear", d2llm::linear);
    m.impl("iem_scores_int8", d2llm::iem_scores_int8);
    m.impl("iem_topk_int8", d2llm::iem_topk_int8);
}
