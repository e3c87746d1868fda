// SPDX-License-Identifier: Apache-2.0
//
// Train a 784-128-10 network on Fashion-MNIST, every rank on images of its own. What travels is never a gradient: a rank hands over the
// inputs of a layer and the gradients of its outputs, and gets the gradient back, averaged over all ranks.
//
// usage: train_factored [IMAGES]      of 60000, in /usr/share/datasets/fashion-mnist (Debian: dataset-fashion-mnist)
#include <isgqcoll.hpp>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <string>
#include <vector>

namespace {

constexpr std::size_t pixels = 784, hidden = 128, classes = 10, rows = 32;
constexpr int epochs = 4;
constexpr float rate = 0.1f;

// The first `bytes` bytes behind the header of a compressed file.
std::vector<std::uint8_t> load(const std::string &name, std::size_t header, std::size_t bytes)
{
    const std::string path = "/usr/share/datasets/fashion-mnist/" + name;
    std::vector<std::uint8_t> data(header + bytes);
    std::FILE *file = popen(("gzip -dc " + path).c_str(), "r");
    const bool whole = file != nullptr && std::fread(data.data(), 1, data.size(), file) == data.size();
    if (file != nullptr)
        pclose(file);
    if (!whole)
        throw std::runtime_error("cannot read " + path);
    data.erase(data.begin(), data.begin() + static_cast<std::ptrdiff_t>(header));
    return data;
}

struct Layer {
    std::size_t m, n;
    std::vector<float> weights, bias;           // [m x n], [n]
    std::vector<float> gradient, bias_gradient; // the same, averaged over all ranks
    std::vector<float> x;                       // [rows x m] what went in
    std::vector<float> y;                       // [rows x n] what came out; on the way back, its gradient

    Layer(std::size_t inputs, std::size_t outputs, isgq::communicator &comm)
        : m(inputs), n(outputs), weights(m * n), bias(n), gradient(m * n), bias_gradient(n), x(rows * m), y(rows * n)
    {
        std::mt19937 random(1);
        std::normal_distribution<float> values(0.0f, 1.0f / std::sqrt(static_cast<float>(m)));
        std::generate(weights.begin(), weights.end(), [&] { return values(random); });
        comm.broadcast(weights, 0); // all start from rank 0's
        comm.synchronize();
    }

    void forward()
    {
        for (std::size_t row = 0; row < rows; row++) {
            float *out = y.data() + row * n;
            std::copy(bias.begin(), bias.end(), out);
            for (std::size_t i = 0; i < m; i++)
                for (std::size_t j = 0; j < n; j++)
                    out[j] += x[row * m + i] * weights[i * n + j];
        }
    }

    // Turns outputs into their gradient and returns the sum of the rows' losses: softmax and cross-entropy.
    double losses(const std::uint8_t *labels)
    {
        double sum = 0.0;
        for (std::size_t row = 0; row < rows; row++) {
            float *out = y.data() + row * n, total = 0.0f;
            for (std::size_t j = 0; j < n; j++)
                total += out[j] = std::exp(out[j]);
            sum -= std::log(double{out[labels[row]] / total});
            for (std::size_t j = 0; j < n; j++)
                out[j] = (out[j] / total - (labels[row] == j ? 1.0f : 0.0f)) / static_cast<float>(rows);
        }
        return sum;
    }

    // The gradient of the outputs below, through the weights and the ReLU between.
    void backward(Layer &below) const
    {
        for (std::size_t row = 0; row < rows; row++)
            for (std::size_t i = 0; i < m; i++) {
                float sum = 0.0f;
                for (std::size_t j = 0; j < n; j++)
                    sum += y[row * n + j] * weights[i * n + j];
                below.y[row * below.n + i] = x[row * m + i] > 0.0f ? sum : 0.0f;
            }
    }

    // The exchange: two thin factors instead of an [m x n] gradient.
    void exchange(const isgq::quantizer &quantizer, isgq::communicator &comm)
    {
        const isgq::factors parts(isgq::matrix(x, rows, m), isgq::matrix(y, rows, n));
        comm.allreduce_factored(parts.bias(bias_gradient), isgq::matrix(gradient, m, n), isgq::reduction::avg, quantizer);
    }

    void descend()
    {
        for (std::size_t i = 0; i < m * n; i++)
            weights[i] -= rate * gradient[i];
        for (std::size_t j = 0; j < n; j++)
            bias[j] -= rate * bias_gradient[j];
    }

    // All ranks have the same weights, to the last bit.
    bool ranks_agree(isgq::communicator &comm) const
    {
        const auto *bytes = reinterpret_cast<const std::uint8_t *>(weights.data());
        std::uint32_t hash = 2166136261u, least, most;
        for (std::size_t i = 0; i < weights.size() * sizeof(float); i++)
            hash = (hash ^ bytes[i]) * 16777619u;
        comm.allreduce(isgq::span(&hash, 1), isgq::span(&least, 1), isgq::reduction::min);
        comm.allreduce(isgq::span(&hash, 1), isgq::span(&most, 1), isgq::reduction::max);
        comm.synchronize();
        return least == most;
    }
};

double step(Layer &first, Layer &second, const std::uint8_t *images, const std::uint8_t *labels, const isgq::quantizer &quantizer,
            isgq::communicator &comm)
{
    std::transform(images, images + rows * pixels, first.x.begin(),
                   [](std::uint8_t byte) { return static_cast<float>(byte) / 255.0f; });
    first.forward();
    std::transform(first.y.begin(), first.y.end(), second.x.begin(), [](float value) { return std::max(value, 0.0f); });
    second.forward();
    const double loss = second.losses(labels);
    second.exchange(quantizer, comm); // travels while we go on: only reads what it was given
    second.backward(first);
    first.exchange(quantizer, comm);
    comm.synchronize();
    second.descend();
    first.descend();
    return loss;
}

bool train(std::size_t images)
{
    auto comm = isgq::communicator::init_env();
    const isgq::quantizer quantizer("isgq:bits=4");
    const auto rank = static_cast<std::size_t>(comm.rank()), nranks = static_cast<std::size_t>(comm.count());
    const std::size_t steps = images / (rows * nranks), own = rank * steps * rows; // every rank has its part of the images
    const auto data = load("train-images-idx3-ubyte.gz", 16, images * pixels),
               labels = load("train-labels-idx1-ubyte.gz", 8, images);
    Layer first(pixels, hidden, comm), second(hidden, classes, comm);

    double loss = 0.0, first_loss = 0.0;
    comm.reset_stats();
    for (int epoch = 0; epoch < epochs; epoch++) {
        loss = 0.0;
        for (std::size_t i = own; i < own + steps * rows; i += rows)
            loss += step(first, second, &data[i * pixels], &labels[i], quantizer, comm) / static_cast<double>(steps * rows);
        comm.allreduce(isgq::span(&loss, 1), isgq::reduction::avg);
        comm.synchronize();
        first_loss = epoch == 0 ? loss : first_loss;
        if (rank == 0)
            std::printf("epoch %d: loss %.3f\n", epoch + 1, loss);
    }
    const auto sent = static_cast<double>(comm.stats().wire_bytes), ranks = static_cast<double>(nranks);
    const double gradients = sizeof(float) * (pixels * hidden + hidden * classes) * static_cast<double>(steps) * epochs;
    const bool agree = first.ranks_agree(comm) && second.ranks_agree(comm);
    if (rank == 0)
        std::printf("%.2f MB sent; gradients in an exact fp32 ring: %.2f MB; ranks %s\n", sent * 1e-6,
                    gradients * 2.0 * (ranks - 1.0) / ranks * 1e-6, agree ? "agree" : "differ");
    comm.finalize(); // left by an exception, the communicator is aborted instead, and no other rank waits
    return agree && loss < first_loss;
}

} // namespace

int main(int argc, char **argv)
{
    try {
        return train(argc > 1 ? std::strtoul(argv[1], nullptr, 10) : 6000) ? 0 : 1;
    } catch (const std::exception &e) {
        std::fprintf(stderr, "%s\n", e.what());
        return 1;
    }
}
