// An image from text, by the models of `galip-edge export-openvino`, without Python.
//
//   generate MODELS OUT.ppm --text "a red bird on a branch" --tokenizers LIBRARY [options]
//   generate MODELS OUT.ppm --tokens "320 736 3329 ..." [options]
//
//   --noise FILE    float32 numbers of N(0,1), little endian; default: drawn from --seed
//   --seed N        default 0; other images than galip-edge makes of the same seed, whose noise
//                   also depends on the prompt
//   --threads N     default: all cores
//   --device NAME   default: CPU
//
// LIBRARY is openvino_tokenizers/lib/libopenvino_tokenizers.so of the Python package
// openvino-tokenizers, or of OpenVINO's archive. For the same tokens, noise, threads and machine the
// image equals that of galip-edge byte for byte.

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include <openvino/openvino.hpp>

namespace {

struct Options {
    std::string models, out;
    std::map<std::string, std::string> named;

    std::string get(const std::string& name, const std::string& otherwise = "") const {
        const auto found = named.find(name);
        return found == named.end() ? otherwise : found->second;
    }
};

Options parse(int count, char** arguments) {
    const std::vector<std::string> known = {"--text",    "--tokenizers", "--tokens", "--noise",
                                            "--seed",    "--threads",    "--device"};
    if (count < 3 || count % 2 == 0) {
        throw std::invalid_argument("usage: generate MODELS OUT.ppm --text TEXT --tokenizers LIBRARY");
    }
    Options options{arguments[1], arguments[2], {}};
    for (int i = 3; i < count; i += 2) {
        if (std::find(known.begin(), known.end(), arguments[i]) == known.end()) {
            throw std::invalid_argument(std::string("unknown option ") + arguments[i]);
        }
        options.named[arguments[i]] = arguments[i + 1];
    }
    return options;
}

// A setting that the export stored in each model.
std::string setting(const std::shared_ptr<ov::Model>& model, const std::string& name) {
    return model->get_rt_info<std::string>("galip_edge", name);
}

std::vector<std::int64_t> integers(const std::string& text) {
    std::string spaced = text;
    std::replace(spaced.begin(), spaced.end(), ',', ' ');
    std::istringstream stream(spaced);
    return {std::istream_iterator<std::int64_t>(stream), {}};
}

// Ids of one text, zero after the end.
std::vector<std::int64_t> tokenize(ov::Core& core, const Options& options) {
    if (!options.get("--tokens").empty()) {
        return integers(options.get("--tokens"));
    }
    core.add_extension(options.get("--tokenizers"));
    auto tokenizer = core.compile_model(options.models + "/tokenizer.xml", "CPU");
    auto request = tokenizer.create_infer_request();
    ov::Tensor text(ov::element::string, {1});
    text.data<std::string>()[0] = options.get("--text");
    request.set_input_tensor(text);
    request.infer();
    const ov::Tensor tokens = request.get_output_tensor();
    const auto* ids = tokens.data<const std::int64_t>();
    return {ids, ids + tokens.get_size()};
}

std::vector<float> noise(const Options& options, std::size_t size) {
    std::vector<float> values(size);
    if (options.get("--noise").empty()) {
        std::mt19937_64 engine(std::stoull(options.get("--seed", "0")));
        std::normal_distribution<float> normal;
        std::generate(values.begin(), values.end(), [&] { return normal(engine); });
        return values;
    }
    std::ifstream file(options.get("--noise"), std::ios::binary);
    const auto bytes = static_cast<std::streamsize>(size * sizeof(float));
    if (!file.read(reinterpret_cast<char*>(values.data()), bytes)) {
        throw std::runtime_error("the noise file needs " + std::to_string(size) + " float32 numbers");
    }
    return values;
}

// The bundle's precision where an x86 CPU has it, else f32; f16 on devices that are made for it.
std::string precision(ov::Core& core, const std::string& device, const std::string& wanted) {
    const auto capabilities = core.get_property(device, ov::device::capabilities);
    const auto has = [&](const std::string& name) {
        return std::find(capabilities.begin(), capabilities.end(), name) != capabilities.end();
    };
    const bool x86 = device == "CPU" && core.get_property(device, ov::device::architecture) == "intel64";
    if (!x86 && has("FP16")) {
        return "f16";
    }
    return wanted == "bf16" && !has("BF16") ? "f32" : wanted;
}

// The settings of galip-edge for one image at a time.
ov::AnyMap properties(ov::Core& core, const Options& options, const std::string& wanted) {
    const std::string device = options.get("--device", "CPU");
    ov::AnyMap found = {{"INFERENCE_PRECISION_HINT", precision(core, device, wanted)},
                        {"PERFORMANCE_HINT", "LATENCY"}};
    if (device == "CPU") {
        found["NUM_STREAMS"] = "1";
        found["ENABLE_CPU_PINNING"] = false;
        if (!options.get("--threads").empty()) {
            found["INFERENCE_NUM_THREADS"] = std::stoi(options.get("--threads"));
        }
    }
    return found;
}

void write_ppm(const std::string& path, const ov::Tensor& image) {
    const auto shape = image.get_shape();  // 1, height, width, 3
    std::ofstream file(path, std::ios::binary);
    file << "P6\n" << shape[2] << ' ' << shape[1] << "\n255\n";
    file.write(reinterpret_cast<const char*>(image.data<const std::uint8_t>()),
               static_cast<std::streamsize>(image.get_byte_size()));
    if (!file.flush()) {
        throw std::runtime_error("cannot write " + path);
    }
}

void run(const Options& options) {
    ov::Core core;
    const std::string device = options.get("--device", "CPU");
    auto encoder = core.read_model(options.models + "/text_encoder.xml");
    auto generator = core.read_model(options.models + "/generator.xml");
    const auto settings = properties(core, options, setting(generator, "inference_precision"));

    // Nothing after the end of the text is read: the shortest of a few lengths that holds it.
    auto tokens = tokenize(core, options);
    const auto end = std::max_element(tokens.begin(), tokens.end());
    const auto used = static_cast<std::int64_t>(end - tokens.begin()) + 1;
    const auto lengths = integers(setting(encoder, "text_lengths"));
    const auto length = std::find_if(lengths.begin(), lengths.end(),
                                     [&](std::int64_t each) { return each >= used; });
    if (tokens.empty() || length == lengths.end()) {
        throw std::runtime_error("the text needs from 1 to " + std::to_string(lengths.back()) + " tokens");
    }
    tokens.resize(static_cast<std::size_t>(*length), 0);

    encoder->reshape(ov::PartialShape{1, *length});
    auto encode = core.compile_model(encoder, device, settings).create_infer_request();
    encode.set_input_tensor(ov::Tensor(ov::element::i64, {1, tokens.size()}, tokens.data()));
    encode.infer();

    auto values = noise(options, std::stoul(setting(generator, "noise_dim")));
    const auto width = std::stol(setting(generator, "embedding_dim"));
    generator->reshape({{"noise", ov::PartialShape{1, static_cast<std::int64_t>(values.size())}},
                        {"sentence", ov::PartialShape{1, width}}});
    auto generate = core.compile_model(generator, device, settings).create_infer_request();
    generate.set_tensor("noise", ov::Tensor(ov::element::f32, {1, values.size()}, values.data()));
    generate.set_tensor("sentence", encode.get_output_tensor());
    generate.infer();
    write_ppm(options.out, generate.get_tensor("image"));
}

}  // namespace

int main(int count, char** arguments) {
    try {
        run(parse(count, arguments));
    } catch (const std::exception& error) {
        std::cerr << "generate: " << error.what() << '\n';
        return 1;
    }
    return 0;
}
