/* Names that both libraries share; libattune takes them from libattune-store. */
#include "attune.h"

const char *attune_version(void) { return ATTUNE_VERSION; }

const char *attune_code_name(int code) {
    switch (code) {
    case ATTUNE_OK: return "ok";
    case ATTUNE_CONTINUE: return "continue";
    case ATTUNE_PAUSED: return "paused";
    case ATTUNE_DONE: return "done";
    case ATTUNE_ERROR_ARGUMENT: return "argument";
    case ATTUNE_ERROR_MEMORY: return "memory";
    case ATTUNE_ERROR_IO: return "io";
    case ATTUNE_ERROR_FORMAT: return "format";
    case ATTUNE_ERROR_UNSUPPORTED: return "unsupported";
    case ATTUNE_ERROR_MISMATCH: return "mismatch";
    case ATTUNE_ERROR_BUSY: return "busy";
    case ATTUNE_ERROR_NOT_FOUND: return "not found";
    case ATTUNE_ERROR_STATE: return "state";
    case ATTUNE_ERROR_CANCELLED: return "cancelled";
    case ATTUNE_ERROR_CONTEXT_FULL: return "context full";
    case ATTUNE_ERROR_INTERNAL: return "internal";
    }
    return "unknown";
}
