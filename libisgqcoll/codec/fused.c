/* SPDX-License-Identifier: Apache-2.0 */
/* Codec `fused`: see fused.h. Every function walks over the pieces of parts that lie in the span. */
#include "codec/fused.h"

#include "base/status.h"
#include "base/util.h"
#include "codec/dense.h"

#define MOST_MESSAGES 64 /* that are summed at once */

/* What a span has of one part. */
typedef struct piece {
    const iq_fused_part_t *part;
    iq_span_t span; /* in elements of the part */
    size_t at;      /* elements from the joint span's first */
} piece_t;

typedef struct walk {
    const iq_fused_t *fused;
    iq_span_t span;
    size_t next; /* part */
} walk_t;

/* The last part that begins at or before the element. */
static size_t part_of(const iq_fused_t *fused, size_t element)
{
    size_t low = 0, high = fused->nparts;
    while (high - low > 1) {
        size_t middle = low + (high - low) / 2;
        if (fused->parts[middle].first <= element)
            low = middle;
        else
            high = middle;
    }
    return low;
}

static walk_t walk_over(const iq_codec_call_t *call, iq_span_t span)
{
    return (walk_t){.fused = call->fused, .span = span, .next = part_of(call->fused, span.first)};
}

static bool next_piece(walk_t *walk, piece_t *piece)
{
    size_t end = walk->span.first + walk->span.count;
    while (walk->next < walk->fused->nparts) {
        const iq_fused_part_t *part = &walk->fused->parts[walk->next++];
        size_t from = iq_max(part->first, walk->span.first), to = iq_min(part->first + part->call.count, end);
        if (part->first >= end)
            return false;
        if (from >= to)
            continue;
        *piece = (piece_t){.part = part, .span = {from - part->first, to - from}, .at = from - walk->span.first};
        return true;
    }
    return false;
}

static const void *own_input(const piece_t *piece)
{
    return (const unsigned char *)piece->part->src + piece->span.first * iq_datatype_bytes(piece->part->call.datatype);
}

static void *output(const piece_t *piece)
{
    return (unsigned char *)piece->part->dst + piece->span.first * iq_datatype_bytes(piece->part->call.datatype);
}

/* ---- sizes ---- */

static size_t acc_bytes(const iq_codec_t *codec, const iq_codec_call_t *call)
{
    (void)codec;
    return call->fused->codec->ops->acc_bytes(call->fused->codec, &call->fused->parts[0].call);
}

static size_t piece_partial_bytes(const iq_codec_call_t *call, const piece_t *piece, int parts)
{
    return iq_align_up(call->fused->codec->ops->partial_bytes(call->fused->codec, &piece->part->call, piece->span, parts), IQ_FUSED_ALIGN);
}

static size_t piece_result_bytes(const iq_codec_call_t *call, const piece_t *piece)
{
    return iq_align_up(call->fused->codec->ops->result_bytes(call->fused->codec, &piece->part->call, piece->span), IQ_FUSED_ALIGN);
}

static size_t partial_bytes(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, int parts)
{
    (void)codec;
    walk_t walk = walk_over(call, span);
    size_t bytes = 0;
    for (piece_t piece; next_piece(&walk, &piece);)
        bytes += piece_partial_bytes(call, &piece, parts);
    return bytes;
}

static size_t result_bytes(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span)
{
    (void)codec;
    walk_t walk = walk_over(call, span);
    size_t bytes = 0;
    for (piece_t piece; next_piece(&walk, &piece);)
        bytes += piece_result_bytes(call, &piece);
    return bytes;
}

static bool result_is_exact(const iq_codec_t *codec, const iq_codec_call_t *call)
{
    (void)codec;
    return call->fused->codec->ops->result_is_exact(call->fused->codec, &call->fused->parts[0].call);
}

/* ---- messages ---- */

/* What is left between a piece and the next is sent too. */
static unsigned char *close_gap(unsigned char *message, size_t used, size_t whole)
{
    for (size_t i = used; i < whole; i++)
        message[i] = 0;
    return message + whole;
}

static void encode(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *message)
{
    const iq_codec_t *inner = call->fused->codec;
    walk_t walk = walk_over(call, span);
    unsigned char *to = message;
    (void)codec, (void)src;
    for (piece_t piece; next_piece(&walk, &piece);) {
        inner->ops->encode(inner, &piece.part->call, piece.span, own_input(&piece), to);
        to = close_gap(to, inner->ops->partial_bytes(inner, &piece.part->call, piece.span, 1), piece_partial_bytes(call, &piece, 1));
    }
}

static void add_own(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *src, void *acc, bool first)
{
    walk_t walk = walk_over(call, span);
    size_t bytes = acc_bytes(codec, call);
    (void)codec, (void)src;
    for (piece_t piece; next_piece(&walk, &piece);)
        call->fused->codec->ops->add_own(call->fused->codec, &piece.part->call, piece.span, own_input(&piece), (unsigned char *)acc + piece.at * bytes, first);
}

static isgq_result_t add(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message, int parts, void *acc,
                         bool first)
{
    (void)codec;
    walk_t walk = walk_over(call, span);
    size_t bytes = acc_bytes(codec, call);
    const unsigned char *from = message;
    for (piece_t piece; next_piece(&walk, &piece);) {
        IQ_TRY(call->fused->codec->ops->add(call->fused->codec, &piece.part->call, piece.span, from, parts, (unsigned char *)acc + piece.at * bytes, first));
        from += piece_partial_bytes(call, &piece, parts);
    }
    return ISGQ_SUCCESS;
}

static void store(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, int parts, void *message)
{
    (void)codec;
    const iq_codec_t *inner = call->fused->codec;
    walk_t walk = walk_over(call, span);
    size_t bytes = acc_bytes(codec, call);
    unsigned char *to = message;
    for (piece_t piece; next_piece(&walk, &piece);) {
        inner->ops->store(inner, &piece.part->call, piece.span, (const unsigned char *)acc + piece.at * bytes, parts, to);
        to = close_gap(to, inner->ops->partial_bytes(inner, &piece.part->call, piece.span, parts), piece_partial_bytes(call, &piece, parts));
    }
}

static void finish(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, void *message)
{
    (void)codec;
    const iq_codec_t *inner = call->fused->codec;
    walk_t walk = walk_over(call, span);
    size_t bytes = acc_bytes(codec, call);
    unsigned char *to = message;
    for (piece_t piece; next_piece(&walk, &piece);) {
        inner->ops->finish(inner, &piece.part->call, piece.span, (const unsigned char *)acc + piece.at * bytes, to);
        to = close_gap(to, inner->ops->result_bytes(inner, &piece.part->call, piece.span), piece_result_bytes(call, &piece));
    }
}

static isgq_result_t decode(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *message, void *dst)
{
    walk_t walk = walk_over(call, span);
    const unsigned char *from = message;
    (void)codec, (void)dst;
    for (piece_t piece; next_piece(&walk, &piece);) {
        IQ_TRY(call->fused->codec->ops->decode(call->fused->codec, &piece.part->call, piece.span, from, output(&piece)));
        from += piece_result_bytes(call, &piece);
    }
    return ISGQ_SUCCESS;
}

static void deliver(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *acc, void *dst)
{
    walk_t walk = walk_over(call, span);
    size_t bytes = acc_bytes(codec, call);
    (void)codec, (void)dst;
    for (piece_t piece; next_piece(&walk, &piece);)
        call->fused->codec->ops->deliver(call->fused->codec, &piece.part->call, piece.span, (const unsigned char *)acc + piece.at * bytes, output(&piece));
}

/* Where the codec sums all ranks' messages at once. */
static void sum(const iq_codec_t *codec, const iq_codec_call_t *call, iq_span_t span, const void *const messages[], const void *src,
                const void *ahead, void *dst)
{
    const iq_codec_t *inner = call->fused->codec;
    const void *pieces[MOST_MESSAGES];
    walk_t walk = walk_over(call, span);
    size_t at = 0;
    (void)codec, (void)src, (void)ahead, (void)dst;
    for (piece_t piece; next_piece(&walk, &piece);) {
        for (int rank = 0; rank < call->nranks; rank++)
            pieces[rank] = messages[rank] == NULL ? NULL : (const unsigned char *)messages[rank] + at;
        inner->ops->sum(inner, &piece.part->call, piece.span, pieces, own_input(&piece), NULL, output(&piece));
        at += piece_partial_bytes(call, &piece, 1);
    }
}

#define FUSED_OPS                                                                                                                            \
    .name = "fused", .result_is_exact = result_is_exact, .acc_bytes = acc_bytes, .partial_bytes = partial_bytes, .result_bytes = result_bytes, \
    .encode = encode, .add_own = add_own, .add = add, .store = store, .finish = finish, .decode = decode, .deliver = deliver

static const iq_codec_ops_t fused_ops = {FUSED_OPS}, fused_sum_ops = {FUSED_OPS, .sum = sum};

iq_codec_t iq_codec_fused(const iq_codec_t *codec, int nranks)
{
    iq_codec_t fused = *codec;
    fused.ops = codec->ops->sum != NULL && nranks <= MOST_MESSAGES ? &fused_sum_ops : &fused_ops;
    return fused;
}

/* Element by element, or sums of integers under scales that all ranks share: no scale travels with a message, which would cover what lies in that. */
bool iq_codec_fuses(const iq_codec_t *codec, const iq_codec_call_t *call)
{
    const iq_codec_ops_t *ops = codec->ops;
    bool elementwise = ops == &iq_codec_none_ops || ops == &iq_codec_fp16_ops || ops == &iq_codec_bf16_ops;
    return elementwise || (ops == &iq_codec_uniform_ops && ops->result_is_exact(codec, call));
}
