struct Factor { float value; int more; };
extern "C" { Factor FACTOR; }

extern "C" __global__ void add(const float* a, const float* b, float* c, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) c[i] = a[i] + b[i];
}

extern "C" __global__ void sums(const float* x, float* y, int n) {
    __shared__ float of_warp[32];
    float value = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) value += x[i];
    for (int offset = 16; offset > 0; offset /= 2) value += __shfl_xor_sync(0xFFFFFFFF, value, offset);
    if (threadIdx.x % 32 == 0) of_warp[threadIdx.x / 32] = value;
    __syncthreads();
    if (threadIdx.x == 0) {
        float sum = 0;
        for (int i = 0; i < blockDim.x / 32; ++i) sum += of_warp[i];
        *y = sum;
    }
}

extern "C" __global__ void racing(float* y) {
    __shared__ float shared[64];
    shared[threadIdx.x] = threadIdx.x;
    y[threadIdx.x] = shared[(threadIdx.x * 5 + 1) % 64];
}

extern "C" __global__ void divergent() { if (threadIdx.x < 32) __syncthreads(); }
extern "C" __global__ void half_a_shuffle() { if (threadIdx.x < 16) __shfl_xor_sync(0xFFFFFFFF, 1, 1); }
extern "C" __global__ void outside() { if (threadIdx.x == 20) __syncwarp(0xFFFF); }
extern "C" __global__ void lower_half(int* y) {
    if (threadIdx.x < 16) y[threadIdx.x] = __shfl_xor_sync(0xFFFF, int(threadIdx.x), 5);
}

extern "C" __global__ void rounded(const float* x, float* y) {
    y[0] = x[0] * x[1] + x[2];
    y[1] = __fmul_rn(x[3], 0.5f);
}

extern "C" __global__ void scaled(float* y) { *y *= FACTOR.value; }

template <class T> __global__ void filled(T* y, T value) { y[threadIdx.x] = value; }

extern "C" __global__ void letters(signed char a, unsigned short b, long long c, double d, bool e, double* y) {
    *y = a + b + double(c) + d + e;
}
