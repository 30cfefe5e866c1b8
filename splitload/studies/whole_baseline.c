/* What splitload is compared with: a program that opens a bundle's stages by onnxruntime's C library, and answers.

   `model.h` is made for each model by `whole_baseline.py`. It says what splitload's loader would read in the manifest:
   THREADS, MOST (the length of the longest list), INPUTS, STAGES and OUTPUT. Prints the moment of the first output on
   the system's monotonic clock and the most resident memory in KiB, then the first numbers of the output. */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "onnxruntime_c_api.h"

#include "model.h"

#define MOST_NUMBERS 1000

typedef struct {
    const char *name, *file;
    int element;
    size_t rank;
    int64_t shape[MOST];
} Input;

typedef struct {
    const char *graph;
    int level;
    size_t num_inputs, num_outputs, num_entries;
    const char *inputs[MOST], *outputs[MOST], *entries[MOST][2];
} Stage;

static const Input inputs[] = {INPUTS};
static const Stage stages[] = {STAGES};

#define COUNT(list) (sizeof(list) / sizeof(list[0]))

static const OrtApi *api;

static struct {
    const char *name;
    OrtValue *value;
} values[COUNT(inputs) + COUNT(stages) * MOST];
static size_t num_values;

static void fail(const char *why) {
    fprintf(stderr, "%s\n", why);
    exit(1);
}

static void check(OrtStatus *status) {
    if (status != NULL) fail(api->GetErrorMessage(status));
}

static void keep(const char *name, OrtValue *value) {
    values[num_values].name = name;
    values[num_values++].value = value;
}

static OrtValue *value_of(const char *name) {
    for (size_t n = 0; n < num_values; n++)
        if (strcmp(values[n].name, name) == 0) return values[n].value;
    fail("a stage reads what no other gives");
    return NULL;
}

static void *content(const char *path, size_t *bytes) {
    FILE *file = fopen(path, "rb");
    if (file == NULL || fseek(file, 0, SEEK_END) != 0) fail("an input cannot be read");
    *bytes = (size_t)ftell(file);
    rewind(file);
    void *data = malloc(*bytes);
    if (data == NULL || fread(data, 1, *bytes, file) != *bytes) fail("an input cannot be read");
    fclose(file);
    return data;
}

static OrtSession *open_stage(const OrtEnv *env, const Stage *stage) {
    OrtSessionOptions *options;
    OrtSession *session;
    check(api->CreateSessionOptions(&options));
    check(api->SetSessionGraphOptimizationLevel(options, (GraphOptimizationLevel)stage->level));
    check(api->SetSessionLogSeverityLevel(options, 4));
    check(api->SetIntraOpNumThreads(options, THREADS));
    check(api->DisableMemPattern(options));
    for (size_t n = 0; n < stage->num_entries; n++)
        check(api->AddSessionConfigEntry(options, stage->entries[n][0], stage->entries[n][1]));
    check(api->CreateSession(env, stage->graph, options, &session));
    api->ReleaseSessionOptions(options);
    return session;
}

static void read_input(const OrtMemoryInfo *memory, const Input *input) {
    OrtValue *value;
    size_t bytes;
    void *data = content(input->file, &bytes);
    check(api->CreateTensorWithDataAsOrtValue(
        memory, data, bytes, input->shape, input->rank, (ONNXTensorElementDataType)input->element, &value));
    keep(input->name, value);
}

static void run_stage(OrtSession *session, const Stage *stage) {
    const OrtValue *given[MOST];
    OrtValue *made[MOST] = {NULL};
    for (size_t n = 0; n < stage->num_inputs; n++) given[n] = value_of(stage->inputs[n]);
    check(api->Run(
        session, NULL, stage->inputs, given, stage->num_inputs, stage->outputs, stage->num_outputs, made));
    for (size_t n = 0; n < stage->num_outputs; n++) keep(stage->outputs[n], made[n]);
}

static long peak_kib(void) {
    char line[256];
    long kib = 0;
    FILE *status = fopen("/proc/self/status", "r");
    if (status == NULL) fail("/proc/self/status cannot be read");
    while (kib == 0 && fgets(line, sizeof line, status) != NULL) sscanf(line, "VmHWM: %ld", &kib);
    fclose(status);
    return kib;
}

static void print_output(OrtValue *value) {
    OrtTensorTypeAndShapeInfo *info;
    size_t count;
    float *numbers;
    check(api->GetTensorTypeAndShape(value, &info));
    check(api->GetTensorShapeElementCount(info, &count));
    api->ReleaseTensorTypeAndShapeInfo(info);
    check(api->GetTensorMutableData(value, (void **)&numbers));
    for (size_t n = 0; n < count && n < MOST_NUMBERS; n++) printf("%.9g ", numbers[n]);
    printf("\n");
}

int main(void) {
    OrtEnv *env;
    OrtMemoryInfo *memory;
    OrtSession *sessions[COUNT(stages)];
    struct timespec now;
    api = OrtGetApiBase()->GetApi(ORT_API_VERSION);
    if (api == NULL) fail("the library lacks this version of the C API");
    check(api->CreateCpuMemoryInfo(OrtDeviceAllocator, OrtMemTypeDefault, &memory));
    check(api->CreateEnv((OrtLoggingLevel)4, "baseline", &env));
    for (size_t n = 0; n < COUNT(stages); n++) sessions[n] = open_stage(env, &stages[n]);
    for (size_t n = 0; n < COUNT(inputs); n++) read_input(memory, &inputs[n]);
    for (size_t n = 0; n < COUNT(stages); n++) run_stage(sessions[n], &stages[n]);
    clock_gettime(CLOCK_MONOTONIC, &now);
    printf("%ld.%09ld %ld\n", (long)now.tv_sec, now.tv_nsec, peak_kib());
    print_output(value_of(OUTPUT));
    for (size_t n = 0; n < num_values; n++) api->ReleaseValue(values[n].value);
    for (size_t n = 0; n < COUNT(stages); n++) api->ReleaseSession(sessions[n]);
    api->ReleaseMemoryInfo(memory);
    api->ReleaseEnv(env);
    return 0;
}
