"""NVRTC builds: exact, whole, cached, and clear about errors; for GPUs that need not be there."""

from __future__ import annotations

import struct
import subprocess
import sys
from pathlib import Path

import pytest

from lionbits_cupy import build
from lionbits_cupy.build import Source

cupy = pytest.importorskip("cupy", reason="it compiles the kernels")

HEADER = """\
template <int N>
__device__ float scaled(float x) {
    static_assert(N > 3, "too small");
    return x * N;
}
"""
TEXT = """\
#include "scaled.cuh"
extern "C" __global__ void kernel(float* x) {
    x[0] = x[1] * x[2] + x[3];
    x[1] = __fdiv_rn(x[2], x[3]);
    x[2] = x[3] / x[4];
    x[3] = sqrtf(x[4]);
    x[4] = scaled<4>(x[5]);
}
"""
SOURCE = Source("kernel.cu", TEXT, (("scaled.cuh", HEADER),))


def failure(source: Source) -> str:
    with pytest.raises(build.CompileError) as caught:
        build.build(source, 90)
    return str(caught.value)


@pytest.mark.parametrize("arch", [75, 80, 90, 100, 120])
def test_a_cubin_is_whole(arch: int, tmp_path: Path) -> None:
    """It ends where the last of its tables ends, and NVIDIA's disassembler takes it."""
    if arch >= 100 and build.version() < (12, 8):
        pytest.skip("this NVRTC is older than the architecture")
    cubin = build.build(SOURCE, arch).cubin
    programs, sections = struct.unpack_from("<QQ", cubin, 0x20)
    program_size, program_count, section_size, section_count = struct.unpack_from("<HHHH", cubin, 0x36)
    assert cubin.startswith(b"\x7fELF")
    assert len(cubin) == max(programs + program_size * program_count, sections + section_size * section_count)

    for disassembler in Path(sys.prefix).glob("lib/python*/site-packages/nvidia/cu13/bin/nvdisasm"):
        (tmp_path / "cubin").write_bytes(cubin)
        command = [disassembler, "-c", tmp_path / "cubin"]
        assert ".text.kernel" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_every_operation_rounds_once() -> None:
    ptx = build.build(SOURCE, 90).ptx
    for wanted in ("mul.rn.f32", "add.rn.f32", "div.rn.f32", "sqrt.rn.f32"):
        assert wanted in ptx
    for unwanted in ("fma", "ftz", "approx", "full"):
        assert unwanted not in ptx


def test_the_log_tells_of_registers_and_spills() -> None:
    assert build.build(SOURCE, 90).log == ""
    log = build.build(SOURCE, 90, verbose=True).log
    assert "registers" in log
    assert "0 bytes spill stores" in log


def test_an_error_in_the_source() -> None:
    message = failure(SOURCE._replace(text=TEXT.replace("x[3] / x[4]", "y")))
    assert 'identifier "y" is undefined' in message
    assert message.splitlines()[-1] == "kernel.cu:5:     x[2] = y;"


def test_an_error_after_a_line_directive() -> None:
    text = f'#define UNUSED\n#line 1 "kernel.cu"\n{TEXT}'.replace("x[3] / x[4]", "y")
    assert failure(SOURCE._replace(text=text)).splitlines()[-1] == "kernel.cu:5:     x[2] = y;"


def test_an_error_in_a_header_and_who_is_to_blame() -> None:
    message = failure(SOURCE._replace(text=TEXT.replace("<4>", "<2>")))
    assert "too small" in message
    assert 'scaled.cuh:3:     static_assert(N > 3, "too small");\nkernel.cu:7:     x[4] = scaled<2>(x[5]);' in message


def test_a_header_that_is_not_there() -> None:
    message = failure(SOURCE._replace(headers=()))
    assert message.splitlines()[-1] == 'kernel.cu:1: #include "scaled.cuh"'


def test_an_architecture_that_nvrtc_does_not_know() -> None:
    with pytest.raises(
        ValueError, match=r"does not know sm_91; it knows .*sm_90.*pip install --upgrade nvidia-cuda-nvrtc"
    ):
        build.build(SOURCE, 91)


def test_nothing_works_without_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cupy.cuda", None)
    build._nvrtc.cache_clear()
    with pytest.raises(ImportError, match="pip install cupy-cuda13x, or cupy-cuda12x"):
        build.version()


def test_nothing_works_without_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("CuPy failed to load libnvrtc.so.12")

    monkeypatch.setattr("cupy.cuda.nvrtc.getVersion", fail)
    build._nvrtc.cache_clear()
    with pytest.raises(ImportError, match="pip install nvidia-cuda-nvrtc"):
        build.version()


def test_importing_the_package_does_not_import_cupy() -> None:
    code = "import sys, lionbits_cupy, lionbits_cupy.build; assert 'cupy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_keys_tell_apart_all_that_matters(monkeypatch: pytest.MonkeyPatch) -> None:
    others = [
        SOURCE._replace(name="other.cu"),
        SOURCE._replace(text=TEXT + "\n"),
        SOURCE._replace(headers=(("scaled.cuh", HEADER + "\n"),)),
        SOURCE._replace(headers=(("other.cuh", HEADER),)),
    ]
    keys = [build.key(source, 90) for source in (SOURCE, *others)] + [build.key(SOURCE, 80)]
    assert build.key(Source(*SOURCE), 90) == keys[0]
    for name, value in {"OPTIONS": build.OPTIONS[1:], "VERSION": 0, "version": lambda: (0, 0)}.items():
        with monkeypatch.context() as patch:
            patch.setattr(build, name, value)
            keys.append(build.key(SOURCE, 90))
    assert len(set(keys)) == len(keys)


def test_a_cubin_is_built_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIONBITS_CACHE", str(tmp_path))
    first = build.cubin(SOURCE, 90)
    assert first == build.build(SOURCE, 90).cubin
    monkeypatch.setattr(build, "build", None)
    assert build.cubin(SOURCE, 90) == first
    assert [path.name for path in tmp_path.iterdir()] == [build.key(SOURCE, 90)]


def test_two_processes_build_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIONBITS_CACHE", str(tmp_path))
    code = f"""if True:
        import sys
        from lionbits_cupy.build import Source, cubin
        sys.stdout.buffer.write(cubin(Source{tuple(SOURCE)}, 90))
    """
    running = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) for _ in range(2)]
    assert [process.communicate()[0] for process in running] == [build.build(SOURCE, 90).cubin] * 2
    assert [path.name for path in tmp_path.iterdir()] == [build.key(SOURCE, 90)]
