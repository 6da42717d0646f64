/* A stand-in for NVIDIA's management library, for machines without a GPU.

   It has the functions that the agent asks through nvidia-ml-py, with NVML's signatures and error
   numbers. What it tells stands in the file `devices` beside the library and is read anew with each
   call, so a test changes it while an agent runs. One line a device:

       UUID STATE BYTES NAME...

   STATE is `ok`, or `lost` for one that fell off the bus. No file: the driver is not loaded. A line
   `hang` makes every call wait until that line is gone, for a minute at most. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID_ARGUMENT = 2, INSUFFICIENT_SIZE = 7,
       DRIVER_NOT_LOADED = 9, GPU_IS_LOST = 15 };
enum { MOST = 64, PATIENCE = 6000 /* waits of 10 ms */ };

typedef struct { char uuid[96], state[16], name[96]; unsigned long long bytes; } device_t;
typedef struct { unsigned long long total, free, used; } memory_t;
typedef struct { unsigned int gpu, memory; } utilization_t;

static int opened;

static int look(device_t *devices, int *hangs) {
    static const char beside[] = "devices";
    char path[4096], line[512];
    Dl_info self;
    int count = 0;
    *hangs = 0;
    if (!dladdr((void *)look, &self) || strlen(self.dli_fname) + sizeof beside > sizeof path)
        return -1;
    strcpy(path, self.dli_fname);
    char *slash = strrchr(path, '/');
    strcpy(slash ? slash + 1 : path, beside);
    FILE *file = fopen(path, "re");
    if (!file)
        return -1;
    while (fgets(line, sizeof line, file)) {
        device_t *each = &devices[count];
        if (!strncmp(line, "hang", 4))
            *hangs = 1;
        else if (count < MOST && sscanf(line, "%95s %15s %llu %95[^\n]", each->uuid, each->state,
                                        &each->bytes, each->name) == 4)
            count++;
    }
    fclose(file);
    return count;
}

/* How many devices there are, once nothing hangs; -1: no driver. */
static int read_devices(device_t *devices) {
    int count = 0, hangs = 1;
    for (int waits = 0; hangs && waits < PATIENCE; waits++) {
        count = look(devices, &hangs);
        if (hangs)
            usleep(10000);
    }
    return count;
}

/* The device behind a handle, which is its place from one on. */
static int find(void *handle, device_t *found) {
    static __thread device_t devices[MOST];
    int count = read_devices(devices);
    long place = (long)handle;
    if (!opened)
        return UNINITIALIZED;
    if (count < 0)
        return DRIVER_NOT_LOADED;
    if (place < 1 || place > count)
        return INVALID_ARGUMENT;
    *found = devices[place - 1];
    return strcmp(found->state, "ok") ? GPU_IS_LOST : SUCCESS;
}

static int text(const char *value, char *buffer, unsigned int length) {
    if (strlen(value) + 1 > length)
        return INSUFFICIENT_SIZE;
    strcpy(buffer, value);
    return SUCCESS;
}

int nvmlInitWithFlags(unsigned int flags) {
    device_t devices[MOST];
    (void)flags;
    if (read_devices(devices) < 0)
        return DRIVER_NOT_LOADED;
    opened++;
    return SUCCESS;
}

int nvmlShutdown(void) {
    if (!opened)
        return UNINITIALIZED;
    opened--;
    return SUCCESS;
}

const char *nvmlErrorString(int result) {
    switch (result) {
    case SUCCESS: return "Success";
    case UNINITIALIZED: return "Uninitialized";
    case INVALID_ARGUMENT: return "Invalid Argument";
    case INSUFFICIENT_SIZE: return "Insufficient Size";
    case DRIVER_NOT_LOADED: return "Driver Not Loaded";
    case GPU_IS_LOST: return "GPU is lost";
    default: return "Unknown Error";
    }
}

int nvmlDeviceGetCount_v2(unsigned int *count) {
    device_t devices[MOST];
    int found = read_devices(devices);
    if (!opened)
        return UNINITIALIZED;
    if (found < 0)
        return DRIVER_NOT_LOADED;
    *count = (unsigned int)found;
    return SUCCESS;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **handle) {
    device_t device;
    *handle = (void *)(long)(index + 1);
    return find(*handle, &device);
}

int nvmlDeviceGetUUID(void *handle, char *buffer, unsigned int length) {
    device_t device;
    int result = find(handle, &device);
    return result ? result : text(device.uuid, buffer, length);
}

int nvmlDeviceGetName(void *handle, char *buffer, unsigned int length) {
    device_t device;
    int result = find(handle, &device);
    return result ? result : text(device.name, buffer, length);
}

int nvmlDeviceGetMemoryInfo(void *handle, memory_t *memory) {
    device_t device;
    int result = find(handle, &device);
    if (!result) {
        memory->total = device.bytes;
        memory->used = device.bytes / 4;
        memory->free = memory->total - memory->used;
    }
    return result;
}

int nvmlDeviceGetUtilizationRates(void *handle, utilization_t *rates) {
    device_t device;
    int result = find(handle, &device);
    if (!result) {
        rates->gpu = 37;
        rates->memory = 11;
    }
    return result;
}

int nvmlDeviceGetTemperature(void *handle, int sensor, unsigned int *degrees) {
    device_t device;
    int result = find(handle, &device);
    (void)sensor;
    if (!result)
        *degrees = 41;
    return result;
}

int nvmlDeviceGetPowerUsage(void *handle, unsigned int *milliwatts) {
    device_t device;
    int result = find(handle, &device);
    if (!result)
        *milliwatts = 71500;
    return result;
}
