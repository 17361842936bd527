/* The two products of bytes on ARM agree bit for bit (core/kernels/neon_int8.h). What they give: test_product.c. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "core/kernels/kernels.h"
#include "tests/made_blocks.h"

static const struct product *fast_of(const char *name) {
    for (const struct kernels *const *table = kernels_all(); *table; table++)
        if (strcmp((*table)->name, name) == 0 && (*table)->supported()) return (*table)->fast;
    return NULL;
}

enum { M = 9, N = 64, K = 288 }; /* neither whole tiles nor whole groups */

/* y(M, N) forward, with W of (N, K), or backward, with W of (K, N) */
static void multiply(const struct product *product, float *y, const float *x, const struct matrix *w, int backward) {
    void *rows = aligned_alloc(64, product->rows_bytes(M, K)), *panels = aligned_alloc(64, product->panels_bytes(N, K));
    assert_true(rows && panels);
    product->pack_rows(rows, x, K, M, K);
    (backward ? product->pack_backward : product->pack_forward)(panels, w, 0, N, 0, K);
    product->multiply(y, N, rows, M, panels, N, K, 0);
    free(rows);
    free(panels);
}

static void test_same_bits(void **state) {
    (void)state;
    const struct product *dotprod = fast_of("neon_dotprod"), *i8mm = fast_of("neon_i8mm");
    if (!dotprod || !i8mm) skip();
    unsigned char *blocks = malloc(N * K * sizeof(float));
    float x[M * K], by_dotprod[M * N], by_i8mm[M * N];
    assert_non_null(blocks);
    for (size_t i = 0; i < M * K; i++) x[i] = made_float();
    for (int backward = 0; backward < 2; backward++) {
        size_t rows = backward ? K : N, cols = backward ? N : K, row_bytes = block_row_bytes(BLOCK_Q4_1, cols);
        struct matrix w = {blocks, BLOCK_Q4_1, rows, cols, row_bytes};
        for (size_t r = 0; r < rows; r++) made_row(blocks + r * row_bytes, BLOCK_Q4_1, cols, 1);
        multiply(dotprod, by_dotprod, x, &w, backward);
        multiply(i8mm, by_i8mm, x, &w, backward);
        assert_memory_equal(by_i8mm, by_dotprod, sizeof by_i8mm);
    }
    free(blocks);
}

int main(void) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_same_bits)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
