/* What every test says of a call that must succeed. */
#ifndef TESTS_EXPECT_H
#define TESTS_EXPECT_H

/* cmocka.h and its four standard headers stand before this one. */
#include "core/base/error.h"

/* The call takes &err, which is declared here. */
#define OK(call)                                                                                                       \
    do {                                                                                                               \
        attune_error err = {0};                                                                                        \
        int code_ = (call);                                                                                            \
        if (code_ != ATTUNE_OK) fail_msg("%s: %d %s (%s)", #call, code_, err.message, err.where);                      \
    } while (0)

#endif
