/* Batch norm with the clipping that follows it, forward and backward, on float32 [N, C, pixels].

   Ioffe and Szegedy 2015 (arXiv 1502.03167), algorithm 1; the statistics are Paddle's: the variance
   divides by the count, in the running average as well. A channel belongs to one thread, so results
   do not depend on the number of threads. Sums of a row are float32 in several lanes, those of rows
   are double. */

#include <math.h>
#include <stdint.h>

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("default", "avx2", "avx512f")))
#else
#define FOR_EACH_PROCESSOR
#endif
#define INLINE static inline __attribute__((always_inline))

/* An OpenMP runtime's GOMP_parallel, omp_get_thread_num and omp_get_num_threads. The caller chooses
   the runtime, so that the threads are those that already compute the convolutions. */
typedef struct {
    void (*parallel)(void (*)(void *), void *, unsigned, unsigned);
    int (*thread_number)(void);
    int (*thread_count)(void);
} Threads;

/* native.py has the same, and accepts this version only. Count up when either struct changes, or
   what a function takes a member for: a library compiled before then is not used. */
enum { VERSION = 1 };
typedef struct {
    int64_t images, channels, pixels;
    float lower, upper; /* what the result is clipped to; infinite: not at all */
    double epsilon;
    double momentum; /* kept of the running statistics; below 0 they are used as they are */
    const float *source, *scale, *offset;
    float *running_mean, *running_variance;
    float *mean, *inverse_deviation; /* [C], of this batch: written forward, read backward */
    float *target;
    const float *gradient; /* of the target */
    float *source_gradient, *scale_gradient, *offset_gradient;
} BatchNorm;

typedef struct {
    const BatchNorm *norm;
    const Threads *threads;
    void (*run)(const BatchNorm *, int64_t);
} Job;

/* Comparisons are written so that NaN stays NaN. */
INLINE float clip(float x, float lower, float upper) {
    x = x < lower ? lower : x;
    return x > upper ? upper : x;
}

INLINE float keep(float gradient, float x, float lower, float upper) {
    return (x > lower) & (x < upper) ? gradient : 0;
}

INLINE double sum_of(const float *row, int64_t pixels) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < pixels; i++) sum += row[i];
    return sum;
}

INLINE double sum_of_squares(const float *row, int64_t pixels, float mean) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < pixels; i++) sum += (row[i] - mean) * (row[i] - mean);
    return sum;
}

INLINE void measure(const BatchNorm *norm, int64_t channel) {
    const int64_t pixels = norm->pixels, image = norm->channels * pixels;
    const float *first = norm->source + channel * pixels;
    const double count = (double)norm->images * (double)pixels;
    double sum = 0, squares = 0;
    for (int64_t n = 0; n < norm->images; n++) sum += sum_of(first + n * image, pixels);
    const double mean = sum / count;
    for (int64_t n = 0; n < norm->images; n++)
        squares += sum_of_squares(first + n * image, pixels, (float)mean);
    /* The mean in float32 is not the mean: take out what its rounding adds. Where all is the same
       value that leaves less than nothing. */
    const double rounding = mean - (float)mean;
    double variance = squares / count - rounding * rounding;
    if (variance < 0) variance = 0;
    const double kept = norm->momentum;
    float *running_mean = norm->running_mean + channel;
    float *running_variance = norm->running_variance + channel;
    norm->mean[channel] = (float)mean;
    norm->inverse_deviation[channel] = (float)(1 / sqrt(variance + norm->epsilon));
    *running_mean = (float)(kept * *running_mean + (1 - kept) * mean);
    *running_variance = (float)(kept * *running_variance + (1 - kept) * variance);
}

FOR_EACH_PROCESSOR
static void forward_channel(const BatchNorm *norm, int64_t channel) {
    if (norm->momentum < 0) {
        norm->mean[channel] = norm->running_mean[channel];
        norm->inverse_deviation[channel] =
            (float)(1 / sqrt(norm->running_variance[channel] + norm->epsilon));
    } else {
        measure(norm, channel);
    }
    const int64_t pixels = norm->pixels, image = norm->channels * pixels;
    const float mean = norm->mean[channel], offset = norm->offset[channel];
    const float factor = norm->scale[channel] * norm->inverse_deviation[channel];
    const float lower = norm->lower, upper = norm->upper;
    for (int64_t n = 0; n < norm->images; n++) {
        const float *restrict row = norm->source + n * image + channel * pixels;
        float *restrict out = norm->target + n * image + channel * pixels;
#pragma omp simd
        for (int64_t i = 0; i < pixels; i++)
            out[i] = clip((row[i] - mean) * factor + offset, lower, upper);
    }
}

FOR_EACH_PROCESSOR
static void backward_channel(const BatchNorm *norm, int64_t channel) {
    const int64_t pixels = norm->pixels, image = norm->channels * pixels;
    const float mean = norm->mean[channel], offset = norm->offset[channel];
    const float inverse = norm->inverse_deviation[channel];
    const float factor = norm->scale[channel] * inverse;
    const float lower = norm->lower, upper = norm->upper;
    const double count = (double)norm->images * (double)pixels;
    double sum = 0, product = 0; /* of the gradient, and of it times the distance to the mean */
    for (int64_t n = 0; n < norm->images; n++) {
        const float *restrict row = norm->source + n * image + channel * pixels;
        const float *restrict above = norm->gradient + n * image + channel * pixels;
        float row_sum = 0, row_product = 0;
#pragma omp simd reduction(+ : row_sum, row_product)
        for (int64_t i = 0; i < pixels; i++) {
            float distance = row[i] - mean;
            float g = keep(above[i], distance * factor + offset, lower, upper);
            row_sum += g;
            row_product += g * distance;
        }
        sum += row_sum;
        product += row_product;
    }
    norm->offset_gradient[channel] = (float)sum;
    norm->scale_gradient[channel] = (float)(product * inverse);
    if (!norm->source_gradient) return;
    const float shift = (float)(sum / count);
    const float slope = (float)(product * inverse * inverse / count);
    for (int64_t n = 0; n < norm->images; n++) {
        const float *restrict row = norm->source + n * image + channel * pixels;
        const float *restrict above = norm->gradient + n * image + channel * pixels;
        float *restrict out = norm->source_gradient + n * image + channel * pixels;
#pragma omp simd
        for (int64_t i = 0; i < pixels; i++) {
            float distance = row[i] - mean;
            float g = keep(above[i], distance * factor + offset, lower, upper);
            out[i] = (g - shift - distance * slope) * factor;
        }
    }
}

static void run_share(void *data) {
    const Job *job = data;
    const int64_t count = job->threads->thread_count(), channels = job->norm->channels;
    const int64_t number = job->threads->thread_number();
    for (int64_t c = channels * number / count; c < channels * (number + 1) / count; c++)
        job->run(job->norm, c);
}

static void run(const BatchNorm *norm, const Threads *threads,
                void (*channel)(const BatchNorm *, int64_t)) {
    enum { WORTH_A_THREAD = 1 << 14 }; /* elements */
    Job job = {norm, threads, channel};
    if (threads && norm->images * norm->channels * norm->pixels >= 2 * WORTH_A_THREAD) {
        threads->parallel(run_share, &job, 0, 0);
    } else {
        for (int64_t c = 0; c < norm->channels; c++) channel(norm, c);
    }
}

void ppcls_batch_norm_forward(const BatchNorm *norm, const Threads *threads) {
    run(norm, threads, forward_channel);
}

void ppcls_batch_norm_backward(const BatchNorm *norm, const Threads *threads) {
    run(norm, threads, backward_channel);
}

int64_t ppcls_native_version(void) { return VERSION; }
