/* A CUDA driver without a GPU, as libcuda.so.1: it has the version $FAKE_VERSION, and starts with the error $FAKE_INIT. */
#include <stdlib.h>
#include <string.h>

static int number(const char *name, int otherwise) {
    const char *value = getenv(name);
    return value ? atoi(value) : otherwise;
}

int cuInit(unsigned flags) { return number("FAKE_INIT", 100); }
int cuDriverGetVersion(int *version) { return *version = number("FAKE_VERSION", 99000), 0; }
int cuGetProcAddress_v2(const char *name, void **found, int version, unsigned long flags, int *status);
int cuGetProcAddress(const char *name, void **found, int version, unsigned long flags) {
    return cuGetProcAddress_v2(name, found, version, flags, 0);
}
static int fail(void) { return 999; }

int cuGetProcAddress_v2(const char *name, void **found, int version, unsigned long flags, int *status) {
    *found = fail;
    if (!strcmp(name, "cuInit")) *found = cuInit;
    if (!strcmp(name, "cuDriverGetVersion")) *found = cuDriverGetVersion;
    if (!strcmp(name, "cuGetProcAddress")) *found = version >= 12000 ? (void *)cuGetProcAddress_v2 : (void *)cuGetProcAddress;
    if (status) *status = 0;
    return 0;
}
