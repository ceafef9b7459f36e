// The entry points of the library: each is one call for all slots of a plan, whose items are shared out to threads.

#include <vector>

#include "threads.hpp"
#include "update.hpp"

#define LIONBITS_EXPORT extern "C" __attribute__((visibility("default")))

struct Table {  // arrays of lionbits_table.Table, and how many items there are
    const Slot* slots;
    const Call* calls;
    const Item* items;
    int64 count;
};

struct Hyper {
    float b1, one_minus_b1, b2, one_minus_b2;
    uint64 seed;
    int32 rounding;  // Rounding
};

struct Scalars {  // of each slot
    const float *lr, *keep, *grad_scale;
    const int64* step;
    const float* absmax;  // of tensor-wise formats
    int64* skipped;
};

static Numbers numbers_of(const Hyper& hyper, float lr, float keep, float grad_scale) {
    return {lr, lr * 0.0f, keep, grad_scale, hyper.b1, hyper.one_minus_b1, hyper.b2, hyper.one_minus_b2};
}

// Calls `visit(chunk)` for each chunk of an item.
template <class Visit>
static void each_chunk(const Plan& plan, const Slot& slot, const Item& item, Visit visit) {
    if (slot.columns == 0) return;
    for (int64 block = item.first; block < item.last;) {
        const Chunk chunk = chunk_at(plan, slot, block, item.last);
        visit(chunk);
        block += blocks_of(plan, chunk);
    }
}

// A number for each item, by `result(buffers, item)`, in the order of the items.
template <class Result>
static std::vector<uint64> of_items(const Table& table, int threads, Result result) {
    std::vector<uint64> found(std::size_t(table.count));
    shared_out(table.count, threads, [&](int64 first, int64 end) {
        Buffers buffers;
        for (int64 i = first; i < end; ++i) found[std::size_t(i)] = result(buffers, table.items[i]);
    });
    return found;
}

// --- a step -----------------------------------------------------------------------------------------------

// Updates a chunk; how many of its elements were skipped comes back.
static uint32 step_chunk(Buffers& b, const Plan& plan, const Slot& slot, int64 grad, const Chunk& chunk, const Numbers& n,
                         const Dither& state, const Dither& param, float absmax) {
    float* p = load_param(b, plan, slot, chunk);
    const float* g = numbers(b, b.g, plan.grad_dtype, slot, chunk, grad, slot.grad_strides);
    const uint8* codes = load_codes(b, plan, slot, chunk);
    float* m = load_momentum(b, codes, plan, slot, chunk);
    float largest[LARGEST / 32];
    uint32 skips = 0;
    each_block(plan, chunk, [&](int i, int first, int count) {
        // codes can be read again, so elements that are not finite are looked for after the update: there are hardly any
        const bool later = plan.skip && plan.quantised;
        Found found = update(plan.caution, plan.skip && !later, p + first, g + first, m + first, b.before, n, count);
        if (later && found.largest >= INFINITE) {
            std::memcpy(p + first, b.before, std::size_t(count) * sizeof(float));
            decode(m + first, codes + first, *scale_of(plan, slot, chunk.block + i), plan.format, count);
            found = update(plan.caution, true, p + first, g + first, m + first, b.before, n, count);
        }
        largest[i] = plan.tensor_wise ? absmax : float_of(found.largest);
        skips += found.skips;
    });
    store_param(b, p, plan, slot, chunk, param);
    if (plan.quantised) {
        draw(b.noise, state, slot, chunk);
        store_momentum(b, m, largest, plan, slot, chunk);
    }
    return skips;
}

// Updates every element of every slot, once.
LIONBITS_EXPORT void lionbits_step(
    const Plan* plan_, const Table* table, const Hyper* hyper, const Scalars* scalars, int threads) {
    const Plan plan = *plan_;
    const auto skips = of_items(*table, threads, [&](Buffers& buffers, const Item& item) {
        const int64 j = item.slot;
        const Slot& slot = table->slots[j];
        const Numbers n = numbers_of(*hyper, scalars->lr[j], scalars->keep[j], scalars->grad_scale[j]);
        const uint32 index = uint32(slot.index), updates = uint32(scalars->step[j]);
        const Dither state = dither_of(hyper->rounding, salt(hyper->seed, index, STATE), updates);
        const int drawn = plan.param_rounding == STOCHASTIC ? STOCHASTIC : DITHERED;
        const Dither param = dither_of(drawn, salt(hyper->seed, index, PARAMETER), updates);
        const float absmax = plan.tensor_wise ? scalars->absmax[j] : 0.0f;
        uint64 skipped = 0;
        each_chunk(plan, slot, item, [&](const Chunk& chunk) {
            skipped += step_chunk(buffers, plan, slot, table->calls[j].grad, chunk, n, state, param, absmax);
        });
        return skipped;
    });
    for (const uint64 count : skips) *scalars->skipped += int64(count);
}

// --- what may have to come before a step ------------------------------------------------------------------

// Of each item, `find(g, m, numbers, skip, count)` over its chunks, joined by `join`.
template <class Find, class Join>
static std::vector<uint64> look(const Plan& plan, const Table& table, const Hyper& hyper, const float* grad_scale,
                                int threads, Find find, Join join) {
    return of_items(table, threads, [&](Buffers& buffers, const Item& item) {
        const Slot& slot = table.slots[item.slot];
        const Numbers n = numbers_of(hyper, 0.0f, 0.0f, grad_scale[item.slot]);
        uint64 found = 0;
        each_chunk(plan, slot, item, [&](const Chunk& chunk) {
            const int64 grad = table.calls[item.slot].grad;
            const float* g = numbers(buffers, buffers.g, plan.grad_dtype, slot, chunk, grad, slot.grad_strides);
            const float* m = load_momentum(buffers, load_codes(buffers, plan, slot, chunk), plan, slot, chunk);
            found = join(found, find(g, m, n, plan.skip != 0, chunk.count));
        });
        return found;
    });
}

// Adds to each slot's number how many of its elements are aligned.
LIONBITS_EXPORT void lionbits_aligned(
    const Plan* plan, const Table* table, const Hyper* hyper, const float* grad_scale, int64* aligned, int threads) {
    const auto sum = [](uint64 x, uint64 y) { return x + y; };
    const auto found = look(*plan, *table, *hyper, grad_scale, threads, count_aligned, sum);
    for (int64 i = 0; i < table->count; ++i) aligned[table->items[i].slot] += int64(found[std::size_t(i)]);
}

// The bits of each slot's largest |m'|, beside what is there.
LIONBITS_EXPORT void lionbits_absmax(
    const Plan* plan, const Table* table, const Hyper* hyper, const float* grad_scale, uint32* absmax, int threads) {
    const auto larger = [](uint64 x, uint64 y) { return x > y ? x : y; };
    const auto found = look(*plan, *table, *hyper, grad_scale, threads, largest_momentum, larger);
    for (int64 i = 0; i < table->count; ++i) {
        uint32& of_slot = absmax[table->items[i].slot];
        of_slot = uint32(larger(of_slot, found[std::size_t(i)]));
    }
}

// --- the codec --------------------------------------------------------------------------------------------

// Codes and scales, to nearest, of a contiguous float32 momentum that stands where gradients do.
LIONBITS_EXPORT void lionbits_encode(const Plan* plan_, const Table* table, const float* absmax, int threads) {
    const Plan plan = *plan_;
    of_items(*table, threads, [&](Buffers& buffers, const Item& item) {
        const Slot& slot = table->slots[item.slot];
        each_chunk(plan, slot, item, [&](const Chunk& chunk) {
            const float* m = at<const float>(table->calls[item.slot].grad, state_element(slot, chunk));
            float largest[LARGEST / 32];
            each_block(plan, chunk, [&](int i, int first, int count) {
                largest[i] = plan.tensor_wise ? *absmax : float_of(largest_of(m + first, count));
            });
            draw(buffers.noise, Dither{NEAREST, 0, 0}, slot, chunk);
            store_momentum(buffers, m, largest, plan, slot, chunk);
        });
        return uint64(0);
    });
    if (plan.tensor_wise) *scale_of(plan, table->slots[0], 0) = block_of(*absmax, plan.format).scale;
}

// float32 momentum, into where parameters stand, contiguous.
LIONBITS_EXPORT void lionbits_decode(const Plan* plan_, const Table* table, int threads) {
    const Plan plan = *plan_;
    of_items(*table, threads, [&](Buffers& buffers, const Item& item) {
        const Slot& slot = table->slots[item.slot];
        each_chunk(plan, slot, item, [&](const Chunk& chunk) {
            const float* m = load_momentum(buffers, load_codes(buffers, plan, slot, chunk), plan, slot, chunk);
            std::memcpy(at<float>(slot.param, state_element(slot, chunk)), m, std::size_t(chunk.count) * sizeof(float));
        });
        return uint64(0);
    });
}
