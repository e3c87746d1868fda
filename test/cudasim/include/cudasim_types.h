/* SPDX-License-Identifier: Apache-2.0 */
/*
 * CUDA's short vectors, aligned as on a GPU: one access to a vector that is not aligned is a fault there, and here under the
 * sanitizer for undefined behaviour.
 */
#ifndef CUDASIM_TYPES_H
#define CUDASIM_TYPES_H

#define CUDASIM_VECTOR2(name, type, alignment) \
    struct alignas(alignment) name {           \
        type x, y;                             \
    };                                         \
    static inline constexpr name make_##name(type x, type y) { return name{x, y}; }

#define CUDASIM_VECTOR4(name, type, alignment) \
    struct alignas(alignment) name {           \
        type x, y, z, w;                       \
    };                                         \
    static inline constexpr name make_##name(type x, type y, type z, type w) { return name{x, y, z, w}; }

CUDASIM_VECTOR2(char2, signed char, 2)
CUDASIM_VECTOR2(uchar2, unsigned char, 2)
CUDASIM_VECTOR2(short2, short, 4)
CUDASIM_VECTOR2(ushort2, unsigned short, 4)
CUDASIM_VECTOR2(int2, int, 8)
CUDASIM_VECTOR2(uint2, unsigned int, 8)
CUDASIM_VECTOR2(float2, float, 8)
CUDASIM_VECTOR2(longlong2, long long, 16)
CUDASIM_VECTOR2(ulonglong2, unsigned long long, 16)
CUDASIM_VECTOR2(double2, double, 16)

CUDASIM_VECTOR4(char4, signed char, 4)
CUDASIM_VECTOR4(uchar4, unsigned char, 4)
CUDASIM_VECTOR4(short4, short, 8)
CUDASIM_VECTOR4(ushort4, unsigned short, 8)
CUDASIM_VECTOR4(int4, int, 16)
CUDASIM_VECTOR4(uint4, unsigned int, 16)
CUDASIM_VECTOR4(float4, float, 16)

static inline constexpr uint3 make_uint3(unsigned int x, unsigned int y, unsigned int z) { return uint3{x, y, z}; }

#undef CUDASIM_VECTOR2
#undef CUDASIM_VECTOR4

#endif
