/* Multiply-adds per second of one thread with everything in registers: "bytes floats", in 1e9.
   cc -O2 -march=native peak.c -o peak */
#include <stdint.h>
#include <stdio.h>
#include <time.h>
#include <immintrin.h>

#define CHAINS 12 /* independent sums: more than the latency of an instruction */
#define ROUNDS 50000000L

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec + 1e-9 * t.tv_nsec;
}

#if defined(__AVX512VNNI__)
#define WIDTH 64
typedef __m512i bytes;
#define LOADED _mm512_set1_epi8(1)
#define PRODUCT(sum, a, b) _mm512_dpbusd_epi32(sum, a, b)
#elif defined(__AVXVNNI__)
#define WIDTH 32
typedef __m256i bytes;
#define LOADED _mm256_set1_epi8(1)
#define PRODUCT(sum, a, b) _mm256_dpbusd_avx_epi32(sum, a, b)
#else
#define WIDTH 32
typedef __m256i bytes;
#define LOADED _mm256_set1_epi8(1)
#define PRODUCT(sum, a, b)                                                                        \
  _mm256_add_epi32(sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), _mm256_set1_epi16(1)))
#endif

#if defined(__AVX512F__)
#define LANES 16
typedef __m512 floats;
#define ONES _mm512_set1_ps(1)
#define FMA(sum, a, b) _mm512_fmadd_ps(a, b, sum)
#else
#define LANES 8
typedef __m256 floats;
#define ONES _mm256_set1_ps(1)
#define FMA(sum, a, b) _mm256_fmadd_ps(a, b, sum)
#endif

#define EACH(DO) DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11)
#define NAME(i) __typeof__(one) sum##i = one;
/* The empty statement keeps the compiler from working the sums out beforehand. */
#define ADD(i)                                                                                    \
  sum##i = STEP(sum##i, one, one);                                                                \
  __asm__ volatile("" : "+v"(sum##i), "+v"(one));

static double of_bytes(void) {
  bytes one = LOADED;
  EACH(NAME)
  double begin = now();
#define STEP PRODUCT
  for (long n = 0; n < ROUNDS; n++) { EACH(ADD) }
#undef STEP
  return 1e-9 * ROUNDS * CHAINS * WIDTH / (now() - begin);
}

static double of_floats(void) {
  floats one = ONES;
  EACH(NAME)
  double begin = now();
#define STEP FMA
  for (long n = 0; n < ROUNDS; n++) { EACH(ADD) }
#undef STEP
  return 1e-9 * ROUNDS * CHAINS * LANES / (now() - begin);
}

int main(void) {
  double bytes_rate = of_bytes(); /* one after the other */
  printf("%.1f %.1f\n", bytes_rate, of_floats());
  return 0;
}
