#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>

#include "core/kernels/grids.h"
#include "tests/made_blocks.h"

static float on_grid(const struct grid *grid, size_t i, int q) {
    return grid->scale[i / grid->part] * (float)q + grid->low[i / grid->part];
}

/* A block read is what it dequantizes to; q that are written are read again, on the same grid. */
static void test_read_and_write(void **state) {
    (void)state;
    for (size_t t = 0; t < MADE_TYPES; t++) {
        enum block_type type = made_types[t];
        const struct block_format *format = block_format_get(type);
        assert_int_equal(grid_has(type), format->elements > 1);
        if (!grid_has(type)) continue;
        for (int round = 0; round < 50; round++) {
            unsigned char block[GRID_ELEMENTS_MAX], before[GRID_ELEMENTS_MAX];
            float values[GRID_ELEMENTS_MAX];
            uint8_t q[GRID_ELEMENTS_MAX], again[GRID_ELEMENTS_MAX];
            struct grid grid, same;
            made_row(block, type, format->elements, 1);
            if (type == BLOCK_Q8_0)
                for (int i = 2; i < 34; i++) block[i] += block[i] == 0x80; /* -128 is off the grid */
            memcpy(before, block, format->bytes);
            grid_read(type, block, &grid, q);
            assert_int_equal(grid.parts * grid.part, format->elements);
            format->dequantize(values, block, format->elements);
            for (size_t i = 0; i < format->elements; i++) {
                assert_in_range(q[i], 0, grid.most);
                float magnitude = fabsf(grid.scale[i / grid.part]) * (float)grid.most + fabsf(grid.low[i / grid.part]);
                assert_true(fabsf(on_grid(&grid, i, q[i]) - values[i]) <= 1e-6f * magnitude);
            }
            grid_write(type, block, q);
            assert_memory_equal(block, before, format->bytes);
            for (size_t i = 0; i < format->elements; i++) q[i] = (uint8_t)(made_bits() % (uint32_t)(grid.most + 1));
            grid_write(type, block, q);
            grid_read(type, block, &same, again);
            assert_memory_equal(again, q, format->elements);
            assert_memory_equal(same.scale, grid.scale, sizeof grid.scale);
            assert_memory_equal(same.low, grid.low, sizeof grid.low);
        }
    }
}

static void test_set(void **state) {
    (void)state;
    for (size_t t = 0; t < MADE_TYPES; t++) {
        enum block_type type = made_types[t];
        int zero, freedom = grid_freedom(type, &zero);
        if (freedom == 0) continue;
        unsigned char block[64];
        uint8_t q[GRID_ELEMENTS_MAX], again[GRID_ELEMENTS_MAX];
        struct grid grid;
        made_row(block, type, 32, 1);
        grid_read(type, block, &grid, q);
        grid_set(type, block, 0.25f, -1.5f);
        grid_read(type, block, &grid, again);
        if (type != BLOCK_Q8_0) assert_memory_equal(again, q, 32);
        assert_true(grid.scale[0] == 0.25f);
        assert_true(grid.low[0] == (freedom == 2 ? -1.5f : -0.25f * (float)zero));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_read_and_write), cmocka_unit_test(test_set)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
