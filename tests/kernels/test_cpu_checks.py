"""The C++ operators called by themselves: what does not fit is refused by name, and nothing is read past its end."""

import pytest
import torch

from d2llm_kernels.backends.cpu import library
from tests.kernels.operator_cases import ACCEPTED, BYTES, LOSSES, PACKED, POOL, SCORES

pytestmark = pytest.mark.cpu

OFFSETS = ([0, 4, 11], [-1, 4, 10], [0, 7, 4], [])


def call(name, arguments):
    return getattr(library.operators(), name)(*arguments.values())


@pytest.mark.parametrize("name,arguments", ACCEPTED, ids=lambda value: value if isinstance(value, str) else "")
def test_a_tensor_of_another_shape_or_dtype_is_refused(name, arguments):
    call(name, arguments)
    for key, value in arguments.items():
        if not isinstance(value, torch.Tensor):
            continue
        wider = torch.zeros(*value.shape[:-1], value.shape[-1] + 1, dtype=value.dtype)
        refused = [wider, value[None], value.to(torch.complex64)]
        if key == "offsets":
            refused = [value[None], value.int(), value.double()]
        # Slopes come in any number type.
        if key in ("dpooled", "dlse", "dz", "dfeatures"):
            refused.pop()
        for other in refused:
            with pytest.raises(RuntimeError, match=": expected"):
                call(name, arguments | {key: other})


@pytest.mark.parametrize("name,arguments", ACCEPTED, ids=lambda value: value if isinstance(value, str) else "")
def test_nothing_in_place_of_a_tensor_is_refused_by_name(name, arguments):
    schema = getattr(library.operators(), name).default._schema
    for argument in schema.arguments:
        if str(argument.type) == "Tensor":
            with pytest.raises(RuntimeError, match=f"^{argument.name}: expected a tensor, got None"):
                call(name, arguments | {argument.name: None})


@pytest.mark.parametrize("offsets", OFFSETS, ids=str)
def test_offsets_that_leave_the_batch_are_refused(offsets):
    for name, given in (
        ("attn_pool", PACKED),
        ("attn_pool_backward", {"dpooled": torch.zeros(2, 3, 8), "dlse": None, **PACKED}),
    ):
        with pytest.raises(RuntimeError, match="offsets: expected"):
            call(name, given | {"offsets": torch.tensor(offsets, dtype=torch.int64)})


@pytest.mark.parametrize("k", (0, -1, 5, 1 << 62))
def test_k_outside_the_passages_is_refused(k):
    with pytest.raises(RuntimeError, match="k: expected between 1 and the number of passages, 4, got"):
        call("iem_topk", SCORES | {"k": k})


NOTHING = (torch.empty(3, 0), torch.empty(3, 0, dtype=torch.int64))


def topk(search, a, b, scale, k, kept=NOTHING):
    return search.topk(a, b, scale, k, *kept, 0)


def test_a_search_keeps_what_there_is_and_checks_what_was_kept():
    search = library.classes().Search(*list(SCORES.values())[2:], torch.float32)
    values, indices = topk(search, SCORES["a"], SCORES["b"], None, 1 << 62)
    assert values.shape == indices.shape == (3, 4)
    assert topk(search, SCORES["a"], SCORES["b"][:0], None, 5)[0].shape == (3, 0)
    for k, kept in ((0, (values, indices)), (3, (values, indices)), (9, (values[:2], indices)), (9, (values, values))):
        with pytest.raises(RuntimeError, match="(k|values|indices): expected"):
            topk(search, SCORES["a"], SCORES["b"], None, k, kept)


def test_a_prepared_branch_takes_its_own_width_and_dtype_alone():
    weights = list(SCORES.values())[2:]
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(RuntimeError, match="weight: expected"):
            library.classes().Search(*weights, dtype)
    plain, rough = (library.classes().Search(*weights, dtype) for dtype in (torch.float32, torch.int8))
    for a, b in ((SCORES["a"][:, 1:], SCORES["b"]), (SCORES["a"], SCORES["b"][:, 1:]), (SCORES["a"], BYTES["b"])):
        with pytest.raises(RuntimeError, match="^[ab]: expected"):
            topk(plain, a, b, None, 2)
    with pytest.raises(RuntimeError, match="scale: expected"):
        topk(rough, SCORES["a"], BYTES["b"], None, 2)
    with pytest.raises(RuntimeError, match="scale: expected"):
        topk(rough, SCORES["a"], BYTES["b"], BYTES["scale"][1:], 2)


def test_pairs_name_queries_that_there_are():
    search = library.classes().Search(*list(SCORES.values())[2:], torch.int8)
    a, (b, scale) = SCORES["a"], list(BYTES.values())[1:3]
    for query in (torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1, -1, 2]), torch.tensor([0, 1]), torch.zeros(4)):
        with pytest.raises(RuntimeError, match="query: expected"):
            search.pairs(a, query, b, scale)
    with pytest.raises(RuntimeError, match="scale: expected"):
        search.pairs(a, torch.tensor([0, 1, 2, 2]), b, None)
    assert search.pairs(a, torch.tensor([0, 1, 2, 2]), b, scale).shape == (4,)


def test_linear_layers_in_int8_check_what_they_are_given():
    weight, x, scale = torch.zeros(3, 8, dtype=torch.int8), torch.zeros(5, 8), torch.ones(3)
    pack, linear = library.operators().pack_linear_int8, library.operators().linear_int8
    packed = pack(weight)
    assert linear(x, packed, scale, None).shape == (5, 3)
    for wrong in (weight.float(), weight[0], weight[:, :0], torch.zeros(1, (1 << 16) + 1, dtype=torch.int8)):
        with pytest.raises(RuntimeError, match="weight: expected"):
            pack(wrong)
    for arguments in (
        (x.double(), packed, scale, None),
        (x[:, :3], packed, scale, None),
        (x[0], packed, scale, None),
        (x, packed.float(), scale, None),
        (x, packed[:, :1], scale, None),
        (x, packed.mT.contiguous().mT, scale, None),
        (x, packed, torch.ones(300), None),
        (x, packed, scale.double(), None),
        (x, packed, scale, torch.ones(2)),
    ):
        with pytest.raises(RuntimeError, match=": expected"):
            linear(*arguments)


def test_inner_products_and_taken_rows_check_what_they_are_given():
    queries, rows = torch.zeros(2, 8, dtype=torch.int8), torch.zeros(5, 8, dtype=torch.int8)
    kept = torch.ones(10, dtype=torch.bool)
    topk, take = library.operators().inner_topk, library.operators().take_rows
    assert topk(queries, [rows, rows], kept, 3)[1].tolist() == [[0, 1, 2]] * 2
    for arguments in (
        (queries.float(), [rows, rows], kept, 3),
        (queries, [rows, rows.int()], kept, 3),
        (queries, [rows, rows[:, 1:]], kept, 3),
        (queries, [rows, rows], kept[1:], 3),
        (queries, [rows, rows], kept.int(), 3),
        (queries, [rows, rows], None, 11),
        (queries, [], None, 1),
        (torch.zeros(1, 1 << 17, dtype=torch.int8), [torch.zeros(1, 1 << 17, dtype=torch.int8)], None, 1),
    ):
        with pytest.raises(RuntimeError, match=": expected"):
            topk(*arguments)
    for chunks, numbers in (
        ([rows, rows], [10]),
        ([rows, rows], [-1]),
        ([rows, rows[:, 1:]], [0]),
        ([rows, rows.int()], [0]),
        ([], [0]),
        ([rows[0]], [0]),
        ([rows], [0.0]),
    ):
        with pytest.raises(RuntimeError, match=": expected"):
            take(chunks, torch.tensor(numbers))


@pytest.mark.parametrize("wide", (16, 4096))
def test_the_package_operator_names_a_query_wider_than_the_tokens(wide):
    with pytest.raises(RuntimeError, match="x: expected shape"):
        torch.ops.d2llm.attn_pool(torch.zeros(2, 5, 8), torch.zeros(3, wide), None, None, "cpu")


def test_widths_of_zero_and_temperatures_without_an_inverse_are_refused():
    with pytest.raises(RuntimeError, match="u: expected a width D of at least 1"):
        call("attn_pool", POOL | {"x": torch.zeros(2, 5, 0), "u": torch.zeros(3, 0)})
    for temperature in (0.0, -1.0, 1e-40, float("nan")):
        with pytest.raises(RuntimeError, match="temperature: expected"):
            call("in_batch_terms", LOSSES | {"temperature": temperature})
