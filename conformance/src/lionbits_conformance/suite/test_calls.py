"""Properties of single calls, over all plans that the backend supports."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lionbits_conformance import properties, serving, strategies
from lionbits_conformance.cases import Case
from lionbits_conformance.domain import Domain
from lionbits_reference.spec import FORMATS, Backend

# The profile's examples of a property are shared out evenly over strata of plans.
PER_STRATUM = max(settings().max_examples // len(strategies.STRATA), 4)


@pytest.mark.parametrize(("bits", "dtype"), strategies.STRATA, ids=strategies.stratum_name)
@pytest.mark.parametrize("check", properties.CALLS)
@settings(max_examples=PER_STRATUM)
@given(data=st.data())
def test_call(
    check: str,
    bits: int,
    dtype: torch.dtype,
    data: st.DataObject,
    backend: Backend,
    device: torch.device,
    domain: Domain,
) -> None:
    """The property holds for any case."""
    case = serving.fit_case(data.draw(strategies.cases(bits=bits, dtype=dtype)), backend, device, bits, dtype)
    domain.add(case)
    properties.CALLS[check](backend, case, device)


@given(case=strategies.cases())
def test_supports(case: Case, backend: Backend, device: torch.device) -> None:
    """``supports`` answers every plan, supported or not."""
    properties.supports_answers(backend, case, device)


@given(case=strategies.cases(most=20))
def test_twenty_tensors(case: Case, backend: Backend, device: torch.device, domain: Domain) -> None:
    """Up to twenty tensors in a call get the reference's bits."""
    case = serving.fit_case(case, backend, device)
    domain.add(case)
    properties.step_equals_reference(backend, case, device)


@settings(max_examples=max(settings().max_examples // 20, 2))
@given(data=st.data())
def test_many_tensors(data: st.DataObject, backend: Backend, device: torch.device, domain: Domain) -> None:
    """A hundred tensors in a call, more than a kernel has arguments for, get the reference's bits."""
    count = data.draw(st.sampled_from((33, 40, 65, 130, 257)))
    case = serving.fit_case(data.draw(strategies.many_tensors(count)), backend, device)
    domain.add(case)
    properties.step_equals_reference(backend, case, device)


@pytest.mark.parametrize("name", [name for names in FORMATS.values() for name in names])
@settings(max_examples=PER_STRATUM)
@given(data=st.data())
def test_every_code(name: str, data: st.DataObject, backend: Backend, device: torch.device) -> None:
    """Each byte of codes decodes to the reference's value, whatever the scale and block size."""
    format = serving.fit_format(data.draw(strategies.formats(name=name)), backend, device)
    properties.every_code_decodes(backend, format, device)
