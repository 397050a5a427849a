// Element types of tensors. Half precision is kept as bits: pairs of it fill the 32-bit words that matrix units take.
#pragma once

#include <cstdint>

#include "arguments.h"

namespace d2llm {

struct fp16 {
    uint16_t bits;
};

struct bf16 {
    uint16_t bits;
};

// Calls function(E{}) with the type of the elements in half precision. A compiler says of float16 what it says of
// bfloat16, in instructions of other letters: to ask in less time, tools/cuda_figures.py leaves it out.
template <class Function>
void with_half(Element element, Function function) {
#ifndef D2LLM_WITHOUT_FLOAT16
    if (element == Element::kFloat16) return function(fp16{});
#endif
    function(bf16{});
}

// Calls function(E{}) with the type of the elements.
template <class Function>
void with_element(Element element, Function function) {
    if (element == Element::kFloat32)
        function(float{});
    else
        with_half(element, function);
}

}  // namespace d2llm
