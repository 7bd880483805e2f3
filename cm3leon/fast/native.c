/* One decode step on a CPU in one call: all layers, for one new id a row.

native.py compiles and calls it. What FastDecoder.step does in some 240 operations happens here in
one team of OpenMP threads, which between two products only wait for each other. Every sum is made
by one thread in an order of its own: a row's numbers depend neither on the other rows nor on the
number of threads.

Letters: R rows, D width, N heads, H head size, F width of the feed-forward, C positions, or rows
of the cache, S slots of such a row, V vocabulary, T tasks; K, M widths of a matrix, which lies as
M rows of K. K and the size of a head are multiples of 16, K of 64 for int8, and M of 4.
*/

#include <math.h>
#include <stdint.h>
#include <string.h>
#if defined(__AVX512VNNI__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define LANES 16
#define SIDE 4 /* outputs of a matrix that are summed side by side */
#else
#define LANES 8
#define SIDE 2
#endif
#define ROWS 4   /* rows that are summed side by side */
#define AHEAD 16 /* slots of the cache that are fetched before they are needed */
#define INLINE static inline __attribute__((always_inline))
#define EACH _Pragma("omp for schedule(static)") /* shared by all threads, which wait at its end */

typedef float Lanes __attribute__((vector_size(4 * LANES), aligned(4)));
typedef float Four __attribute__((vector_size(16)));

typedef struct {
    const void *numbers; /* float, or int8_t where there are scales; NULL: no such matrix */
    const float *scales_M;
    const int32_t *sums_M; /* of the int8_t of an output */
    int64_t outputs, width;
} Matrix;

typedef struct {
    const float *gain, *bias; /* either may be NULL */
} Norm;

typedef struct {
    Matrix qkv, out, gate, up, down;
    Norm attention_norm, mlp_norm, q_norm, k_norm;
} Layer;

typedef struct {
    const Layer *layers;
    const float *embed_VD, *positions_CD, *cos_CH, *sin_CH; /* NULL: not of that kind */
    Norm norm;
    int64_t vocabulary, depth, width, heads, head_size, ffn, rms, qk_norm, squared;
    float eps;
} Model;

typedef struct { /* the keys and values of a layer, and how many tokens a row has */
    float *k_CSNH, *v_CSNH;
    const int64_t *lengths_R;
    int64_t slots;
} Cache;

typedef struct { /* what a product reads; for int8, in steps of scale and as 0..255 round 128 */
    float *x_RK, *scales_R;
    uint8_t *bytes_RK;
} Input;

typedef struct {
    Input input;
    float *x_RD, *qkv_R3D, *up_RF, *gate_RF, *scores_TS;
} Work;

/* Products */

INLINE float sum_of(Lanes lanes) {
    Four parts[LANES / 4];
    memcpy(parts, &lanes, sizeof lanes);
    for (int i = 1; i < LANES / 4; i++) parts[0] += parts[i];
    return (parts[0][0] + parts[0][2]) + (parts[0][1] + parts[0][3]);
}

INLINE void floats(const float *w_MK, const float *x_RK, int64_t width, int rows,
                   float y_RM[ROWS][SIDE]) {
    Lanes sums[ROWS][SIDE] = {0};
    for (int64_t k = 0; k < width; k += LANES) {
        Lanes w[SIDE];
        for (int m = 0; m < SIDE; m++) {
            const float *at = w_MK + m * width + k;
            w[m] = *(const Lanes *)at;
            __builtin_prefetch(at + SIDE * width);
        }
        for (int r = 0; r < rows; r++) {
            Lanes x = *(const Lanes *)(x_RK + r * width + k);
            for (int m = 0; m < SIDE; m++) sums[r][m] += x * w[m];
        }
    }
    for (int r = 0; r < rows; r++)
        for (int m = 0; m < SIDE; m++) y_RM[r][m] = sum_of(sums[r][m]);
}

#if defined(__AVX512VNNI__)
INLINE void bytes(const int8_t *w_MK, const uint8_t *x_RK, int64_t width, int rows,
                  int32_t y_RM[ROWS][SIDE]) {
    __m512i sums[ROWS][SIDE];
    memset(sums, 0, sizeof sums);
    for (int64_t k = 0; k < width; k += 64) {
        __m512i w[SIDE];
        for (int m = 0; m < SIDE; m++) {
            const int8_t *at = w_MK + m * width + k;
            w[m] = _mm512_loadu_si512(at);
            __builtin_prefetch(at + SIDE * width);
        }
        for (int r = 0; r < rows; r++) {
            __m512i x = _mm512_loadu_si512(x_RK + r * width + k);
            for (int m = 0; m < SIDE; m++) sums[r][m] = _mm512_dpbusd_epi32(sums[r][m], x, w[m]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int m = 0; m < SIDE; m++) y_RM[r][m] = _mm512_reduce_add_epi32(sums[r][m]);
}
#else
INLINE void bytes(const int8_t *w_MK, const uint8_t *x_RK, int64_t width, int rows,
                  int32_t y_RM[ROWS][SIDE]) {
    for (int r = 0; r < rows; r++)
        for (int m = 0; m < SIDE; m++) {
            int32_t sum = 0;
            for (int64_t k = 0; k < width; k++) sum += x_RK[r * width + k] * w_MK[m * width + k];
            y_RM[r][m] = sum;
        }
}
#endif

/* SIDE outputs of some rows, at most ROWS; called with a constant, which takes the loops apart. */
INLINE void block(const Matrix *matrix, const Input *input, int64_t output, int64_t row, int rows,
                  float y_RM[ROWS][SIDE]) {
    int64_t width = matrix->width, at = output * width, from = row * width;
    if (matrix->scales_M == NULL) {
        floats((const float *)matrix->numbers + at, input->x_RK + from, width, rows, y_RM);
        return;
    }
    int32_t whole_RM[ROWS][SIDE];
    bytes((const int8_t *)matrix->numbers + at, input->bytes_RK + from, width, rows, whole_RM);
    for (int r = 0; r < rows; r++)
        for (int m = 0; m < SIDE; m++) {
            int32_t whole = whole_RM[r][m] - 128 * matrix->sums_M[output + m];
            y_RM[r][m] = (float)whole * matrix->scales_M[output + m] * input->scales_R[row + r];
        }
}

/* y = x W^T, or with `onto` y + x W^T. */
static void product(const Matrix *matrix, const Input *input, int64_t rows, int onto, float *y_RM) {
    EACH for (int64_t output = 0; output < matrix->outputs; output += SIDE)
        for (int64_t row = 0; row < rows; row += ROWS) {
            float found_RM[ROWS][SIDE];
            int some = rows - row < ROWS ? (int)(rows - row) : ROWS;
            switch (some) {
            case 1: block(matrix, input, output, row, 1, found_RM); break;
            case 2: block(matrix, input, output, row, 2, found_RM); break;
            case 3: block(matrix, input, output, row, 3, found_RM); break;
            default: block(matrix, input, output, row, ROWS, found_RM);
            }
            for (int r = 0; r < some; r++)
                for (int m = 0; m < SIDE; m++) {
                    float *y = y_RM + (row + r) * matrix->outputs + output + m;
                    *y = onto ? *y + found_RM[r][m] : found_RM[r][m];
                }
        }
}

/* A row as whole numbers, as torch.ops.quantized.linear_dynamic makes them of an even range. */
static void round_row(const Input *input, int64_t row, int64_t width) {
    const float *x_K = input->x_RK + row * width;
    uint8_t *bytes_K = input->bytes_RK + row * width;
    float most = 1e-30f, sum = 0;
    for (int64_t k = 0; k < width; k++) {
        most = fabsf(x_K[k]) > most ? fabsf(x_K[k]) : most;
        sum += x_K[k];
    }
    if (!isfinite(sum)) { /* no number, and nothing that could be rounded */
        memset(bytes_K, 255, (size_t)width);
        input->scales_R[row] = NAN;
        return;
    }
    float scale = 127.5f / most;
    for (int64_t k = 0; k < width; k++) {
        int32_t whole = (int32_t)(x_K[k] * scale + 128.5f);
        bytes_K[k] = (uint8_t)(whole > 255 ? 255 : whole);
    }
    input->scales_R[row] = most / 127.5f;
}

static void round_rows(const Input *input, int64_t rows, int64_t width) {
    EACH for (int64_t row = 0; row < rows; row++) round_row(input, row, width);
}

/* Norms, attention, activations */

static void normalise(const float *x_D, int64_t width, int rms, float eps, Norm norm, float *y_D) {
    float mean = 0, square = 0;
    if (!rms) {
#pragma omp simd reduction(+ : mean)
        for (int64_t i = 0; i < width; i++) mean += x_D[i];
        mean /= (float)width;
    }
#pragma omp simd reduction(+ : square)
    for (int64_t i = 0; i < width; i++) square += (x_D[i] - mean) * (x_D[i] - mean);
    float scale = 1.0f / sqrtf(square / (float)width + eps);
    for (int64_t i = 0; i < width; i++) y_D[i] = (x_D[i] - mean) * scale;
    if (norm.gain != NULL)
        for (int64_t i = 0; i < width; i++) y_D[i] *= norm.gain[i];
    if (norm.bias != NULL)
        for (int64_t i = 0; i < width; i++) y_D[i] += norm.bias[i];
}

static void normalise_rows(const Model *model, Norm norm, const float *x_RD, int64_t rows,
                           float *y_RD) {
    EACH for (int64_t at = 0; at < rows * model->width; at += model->width)
        normalise(x_RD + at, model->width, (int)model->rms, model->eps, norm, y_RD + at);
}

/* e^x, x between -87 and 88: after Cephes' expf, in steps that can be done side by side. */
INLINE float power(float x) {
    x = x < -87.0f ? -87.0f : x > 88.0f ? 88.0f : x;
    float twos = __builtin_floorf(x * 1.44269504f + 0.5f);
    float rest = x - twos * 0.693359375f + twos * 2.12194440e-4f;
    float y = 1.9875691500e-4f;
    y = y * rest + 1.3981999507e-3f;
    y = y * rest + 8.3334519073e-3f;
    y = y * rest + 4.1665795894e-2f;
    y = y * rest + 1.6666665459e-1f;
    y = y * rest + 5.0000001201e-1f;
    y = y * rest * rest + rest + 1.0f;
    union {
        int32_t bits;
        float number;
    } scale = {.bits = ((int32_t)twos + 127) << 23};
    return y * scale.number;
}

/* The query or key of one head, from what the product gave. */
static void place(const Model *model, const float *x_H, Norm norm, int64_t position, float *y_H) {
    int64_t size = model->head_size, half = size / 2;
    float own_H[size];
    memcpy(own_H, x_H, sizeof own_H);
    if (model->qk_norm) normalise(x_H, size, 0, model->eps, norm, own_H);
    if (model->cos_CH == NULL) {
        memcpy(y_H, own_H, sizeof own_H);
        return;
    }
    const float *cos_H = model->cos_CH + position * size, *sin_H = model->sin_CH + position * size;
    for (int64_t i = 0; i < half; i++) {
        y_H[i] = own_H[i] * cos_H[i] + own_H[i + half] * sin_H[i];
        y_H[i + half] = own_H[i + half] * cos_H[i + half] + own_H[i] * sin_H[i + half];
    }
}

/* One head of one row: store its key and value, look at its slots up to the new one. */
static void look(const Model *model, const Layer *layer, const Cache *cache, int64_t row,
                 int64_t head, const float *qkv_R3D, float *scores_S, float *out_RD) {
    int64_t size = model->head_size, width = model->width, length = cache->lengths_R[row];
    int64_t first = row * cache->slots * width + head * size, last = first + length * width;
    const float *qkv_3D = qkv_R3D + row * 3 * width + head * size;
    float q_H[size], sum_H[size], most = -INFINITY, total = 0, scale = 1.0f / sqrtf((float)size);
    place(model, qkv_3D, layer->q_norm, length, q_H);
    place(model, qkv_3D + width, layer->k_norm, length, cache->k_CSNH + last);
    memcpy(cache->v_CSNH + last, qkv_3D + 2 * width, sizeof q_H);
    const float *k_H = cache->k_CSNH + first, *v_H = cache->v_CSNH + first;
    for (int64_t slot = 0; slot <= length; slot++, k_H += width) {
        Lanes sum = {0};
        for (int64_t i = 0; i < size; i += LANES) {
            sum += *(const Lanes *)(q_H + i) * *(const Lanes *)(k_H + i);
            __builtin_prefetch(k_H + AHEAD * width + i);
        }
        scores_S[slot] = sum_of(sum) * scale;
        most = scores_S[slot] > most ? scores_S[slot] : most;
    }
#pragma omp simd reduction(+ : total)
    for (int64_t slot = 0; slot <= length; slot++) {
        scores_S[slot] = power(scores_S[slot] - most);
        total += scores_S[slot];
    }
    memset(sum_H, 0, sizeof sum_H);
    for (int64_t slot = 0; slot <= length; slot++, v_H += width)
        for (int64_t i = 0; i < size; i += LANES) {
            *(Lanes *)(sum_H + i) += scores_S[slot] * *(const Lanes *)(v_H + i);
            __builtin_prefetch(v_H + AHEAD * width + i);
        }
    float *out_H = out_RD + row * width + head * size;
    for (int64_t i = 0; i < size; i++) out_H[i] = sum_H[i] / total;
}

static void attend(const Model *model, const Layer *layer, const Cache *cache, int64_t rows,
                   const Work *work) {
    EACH for (int64_t task = 0; task < rows * model->heads; task++)
        look(model, layer, cache, task / model->heads, task % model->heads, work->qkv_R3D,
             work->scores_TS + task * cache->slots, work->input.x_RK);
}

static void activate(const Model *model, const Layer *layer, const Work *work, int64_t count) {
    const float *up = work->up_RF, *gate = work->gate_RF;
    if (layer->gate.numbers == NULL && model->squared) {
        EACH for (int64_t i = 0; i < count; i++)
            work->input.x_RK[i] = up[i] < 0 ? 0 : up[i] * up[i];
    } else if (layer->gate.numbers == NULL) {
        EACH for (int64_t i = 0; i < count; i++) work->input.x_RK[i] = up[i] < 0 ? 0 : up[i];
    } else {
        EACH for (int64_t i = 0; i < count; i++)
            work->input.x_RK[i] = up[i] * gate[i] / (1.0f + power(-gate[i]));
    }
}

/* The whole of it */

static void pass(const Model *model, const Layer *layer, const Cache *cache, int64_t rows,
                 const Work *work) {
    const Input *input = &work->input;
    int64_t width = model->width;
    int whole = layer->qkv.scales_M != NULL;
    normalise_rows(model, layer->attention_norm, work->x_RD, rows, input->x_RK);
    if (whole) round_rows(input, rows, width);
    product(&layer->qkv, input, rows, 0, work->qkv_R3D);
    attend(model, layer, cache, rows, work);
    if (whole) round_rows(input, rows, width);
    product(&layer->out, input, rows, 1, work->x_RD);
    normalise_rows(model, layer->mlp_norm, work->x_RD, rows, input->x_RK);
    if (whole) round_rows(input, rows, width);
    if (layer->gate.numbers != NULL) product(&layer->gate, input, rows, 0, work->gate_RF);
    product(&layer->up, input, rows, 0, work->up_RF);
    activate(model, layer, work, rows * model->ffn);
    if (whole) round_rows(input, rows, model->ffn);
    product(&layer->down, input, rows, 1, work->x_RD);
}

static void embed(const Model *model, const int64_t *ids_R, const int64_t *lengths_R, int64_t rows,
                  float *x_RD) {
    int64_t width = model->width;
    EACH for (int64_t row = 0; row < rows; row++) {
        float *x_D = x_RD + row * width;
        memcpy(x_D, model->embed_VD + ids_R[row] * width, (size_t)width * sizeof(float));
        if (model->positions_CD == NULL) continue;
        const float *position_D = model->positions_CD + lengths_R[row] * width;
        for (int64_t i = 0; i < width; i++) x_D[i] += position_D[i];
    }
}

/* Lays out the memory that a step works in; how many bytes that is. */
static int64_t lay(const Model *model, int64_t rows, int64_t slots, float *memory, Work *work) {
    int64_t wide = model->ffn > model->width ? model->ffn : model->width, end = 0;
    work->x_RD = memory + end, end += rows * model->width;
    work->qkv_R3D = memory + end, end += rows * 3 * model->width;
    work->up_RF = memory + end, end += rows * model->ffn;
    work->gate_RF = memory + end, end += rows * model->ffn;
    work->scores_TS = memory + end, end += rows * model->heads * slots;
    work->input.x_RK = memory + end, end += rows * wide;
    work->input.scales_R = memory + end, end += rows;
    work->input.bytes_RK = (uint8_t *)(memory + end);
    return end * (int64_t)sizeof(float) + rows * wide;
}

int64_t work_size(const Model *model, int64_t rows, int64_t slots) {
    Work work;
    return lay(model, rows, slots, NULL, &work);
}

/* Hidden states after the final norm. The first `rows` rows of the cache hold `lengths_R` tokens
   and get one more; a layer of the cache has `plane` numbers. 1 where an id is not in the
   vocabulary. */
int step(const Model *model, const int64_t *ids_R, const int64_t *lengths_R, float *k_YCSNH,
         float *v_YCSNH, float *memory, float *hidden_RD, int64_t rows, int64_t plane,
         int64_t slots, int64_t threads) {
    Work work;
    lay(model, rows, slots, memory, &work);
    for (int64_t row = 0; row < rows; row++)
        if (ids_R[row] < 0 || ids_R[row] >= model->vocabulary) return 1;
#pragma omp parallel num_threads((int)threads)
    {
        embed(model, ids_R, lengths_R, rows, work.x_RD);
        for (int64_t number = 0; number < model->depth; number++) {
            Cache cache = {k_YCSNH + number * plane, v_YCSNH + number * plane, lengths_R, slots};
            pass(model, model->layers + number, &cache, rows, &work);
        }
        normalise_rows(model, model->norm, work.x_RD, rows, hidden_RD);
    }
    return 0;
}

/* Whether products of int8 have instructions of their own; without, PyTorch's are faster. */
int whole_is_fast(void) {
#if defined(__AVX512VNNI__)
    return 1;
#else
    return 0;
#endif
}

/* y = x W^T for a matrix by itself; `bytes_RK` and `scales_R` are memory to work in, for int8. */
void multiply(const Matrix *matrix, float *x_RK, float *scales_R, uint8_t *bytes_RK, float *y_RM,
              int64_t rows, int64_t threads) {
    Input input = {x_RK, scales_R, bytes_RK};
#pragma omp parallel num_threads((int)threads)
    {
        if (matrix->scales_M != NULL) round_rows(&input, rows, matrix->width);
        product(matrix, &input, rows, 0, y_RM);
    }
}
