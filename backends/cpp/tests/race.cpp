// Steps of many small slots and of a large one on four threads, to be built with -fsanitize=thread.

#include "kernels.cpp"

#include <cstdio>

int main() {
    constexpr int SLOTS = 40;
    constexpr int64 LARGE = 1 << 17;
    const Format e3m4{8, 19, 127, 15.5f, 127, 19};
    const Plan plan{FLOAT32, FLOAT32, 1, e3m4, 0, 256, MASK, NEAREST, 32, 1};
    std::vector<std::vector<float>> params, grads, scales;
    std::vector<std::vector<uint8>> codes;
    std::vector<Slot> slots;
    std::vector<Call> calls;
    std::vector<Item> items;
    for (int64 j = 0; j < SLOTS; ++j) {
        const int64 columns = j == 0 ? LARGE : 100 + j, blocks = (columns + 255) / 256;
        params.emplace_back(std::size_t(columns), 1.0f);
        grads.emplace_back(std::size_t(columns), 0.5f);
        scales.emplace_back(std::size_t(blocks), 0.0f);
        codes.emplace_back(std::size_t(columns), uint8(0));
        Slot slot{};
        slot.param = reinterpret_cast<int64>(params.back().data());
        slot.momentum = reinterpret_cast<int64>(codes.back().data());
        slot.scale = reinterpret_cast<int64>(scales.back().data());
        slot.columns = slot.pitch = columns;
        slot.row_blocks = blocks;
        slot.index = j;
        slots.push_back(slot);
        calls.push_back({reinterpret_cast<int64>(grads.back().data()), 0});
        for (int64 first = 0; first < blocks; first += 16) items.push_back({j, first, first + 16 < blocks ? first + 16 : blocks});
    }
    const Table table{slots.data(), calls.data(), items.data(), int64(items.size())};
    const Hyper hyper{0.9f, 0.1f, 0.99f, 0.01f, 7, DITHERED};
    std::vector<float> rate(SLOTS, 1e-3f), one(SLOTS, 1.0f);
    std::vector<int64> step(SLOTS, 1), aligned(SLOTS, 0);
    int64 skipped = 0;
    const Scalars scalars{rate.data(), one.data(), one.data(), step.data(), nullptr, &skipped};
    for (int i = 0; i < 20; ++i) {
        lionbits_aligned(&plan, &table, &hyper, one.data(), aligned.data(), 4);
        lionbits_step(&plan, &table, &hyper, &scalars, 4);
    }
    std::printf("%g %lld\n", double(params[0][0]), static_cast<long long>(aligned[0]));
    return skipped == 0 && aligned[0] == 20 * LARGE ? 0 : 1;
}
