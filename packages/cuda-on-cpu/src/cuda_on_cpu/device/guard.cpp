// What torch asks a CUDA device for from C++, answered for memory of the host: the current device of a thread, and
// tensors over a block of memory, whose death is noted.
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/dlpack.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

#include <atomic>
#include <cstdlib>
#include <mutex>
#include <new>
#include <vector>

namespace {

constexpr c10::DeviceIndex DEVICES = 2;
thread_local c10::DeviceIndex current = 0;
std::mutex freeing;
auto& freed = *new std::vector<int64_t>;  // tensors die at any time, even after Python has ended
std::atomic<bool> present{false};

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::DeviceType::CUDA; }
  c10::Device getDevice() const override { return {c10::DeviceType::CUDA, current}; }
  c10::Device exchangeDevice(c10::Device device) const override {
    const c10::Device before = getDevice();
    setDevice(device);
    return before;
  }
  void setDevice(c10::Device device) const override { uncheckedSetDevice(device); }
  void uncheckedSetDevice(c10::Device device) const noexcept override {
    if (device.index() >= 0) current = device.index();
  }
  c10::Stream getStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return DEVICES; }
};

Guard guard;
c10::impl::DeviceGuardImplRegistrar registrar(c10::DeviceType::CUDA, &guard);

// The autograd engine asks these what kind of accelerator there is.
struct Hooks final : at::CUDAHooksInterface {
  void init() const override {}
  bool hasCUDA() const override { return present; }
  bool isBuilt() const override { return present; }
  bool isAvailable() const override { return present; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return present; }
  c10::DeviceIndex deviceCount() const override { return DEVICES; }
  c10::DeviceIndex getCurrentDevice() const override { return current; }
};

struct Managed {
  DLManagedTensor tensor;
  int64_t shape, stride, block;
};

void release(DLManagedTensor* tensor) {
  auto* managed = static_cast<Managed*>(tensor->manager_ctx);
  if (managed->block) {
    const std::lock_guard<std::mutex> lock(freeing);
    freed.push_back(managed->block);
  }
  std::free(managed);
}

}  // namespace

// torch has made its hooks when it is imported, for a build without CUDA. They hold no data: these take their place.
static_assert(sizeof(Hooks) == sizeof(at::CUDAHooksInterface));
extern "C" void install() { new (const_cast<at::CUDAHooksInterface*>(&at::detail::getCUDAHooks())) Hooks; }
extern "C" void set_present(int value) { present = value != 0; }
extern "C" int current_device() { return current; }
extern "C" void set_current_device(int index) { current = static_cast<c10::DeviceIndex>(index); }

// The next block whose last tensor has died, in their order; 0: there is none.
extern "C" int64_t next_freed() {
  static size_t at = 0;
  const std::lock_guard<std::mutex> lock(freeing);
  if (at < freed.size()) return freed[at++];
  freed.clear();
  at = 0;
  return 0;
}

// A DLPack tensor of `size` bytes at an address: on CUDA device `device`, or of the CPU if that is negative. When the
// last tensor that uses it has died, `next_freed` returns `block`, unless that is 0.
extern "C" void* managed_bytes(void* address, int64_t size, int device, int64_t block) {
  auto* managed = static_cast<Managed*>(std::malloc(sizeof(Managed)));
  managed->shape = size;
  managed->stride = 1;
  managed->block = block;
  const DLDevice place = device < 0 ? DLDevice{kDLCPU, 0} : DLDevice{kDLCUDA, device};
  managed->tensor = {{address, place, 1, {kDLUInt, 8, 1}, &managed->shape, &managed->stride, 0}, managed, release};
  return &managed->tensor;
}
