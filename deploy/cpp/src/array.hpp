// Arrays as in numpy: a type, a shape, and row-major elements.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <map>
#include <numeric>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "tessera.h"

namespace tessera {

using Type = tessera_type;

inline constexpr struct {
    Type type;
    size_t bytes;
    const char *name;         // numpy's
    const char *safetensors;  // type in the header of such a file
} kTypes[] = {
    {TESSERA_FLOAT32, 4, "float32", "F32"}, {TESSERA_FLOAT64, 8, "float64", "F64"}, {TESSERA_INT32, 4, "int32", "I32"},
    {TESSERA_INT64, 8, "int64", "I64"},     {TESSERA_UINT8, 1, "uint8", "U8"},      {TESSERA_BOOL, 1, "bool", "BOOL"},
};

template <typename T>
constexpr Type type_of() {
    if constexpr (std::is_same_v<T, float>) return TESSERA_FLOAT32;
    else if constexpr (std::is_same_v<T, double>) return TESSERA_FLOAT64;
    else if constexpr (std::is_same_v<T, int32_t>) return TESSERA_INT32;
    else if constexpr (std::is_same_v<T, int64_t>) return TESSERA_INT64;
    else if constexpr (std::is_same_v<T, bool>) return TESSERA_BOOL;
    else {
        static_assert(std::is_same_v<T, uint8_t>);
        return TESSERA_UINT8;
    }
}

using Shape = std::vector<int64_t>;

inline size_t count(const Shape &shape) {
    return static_cast<size_t>(std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<>()));
}

class Array {
   public:
    Array() = default;
    Array(Type type, Shape shape) : type_(type), shape_(std::move(shape)), bytes_(count(shape_) * kTypes[type].bytes) {}

    template <typename T>
    static Array of(Shape shape) {
        return Array(type_of<T>(), std::move(shape));
    }

    // Changes the lengths, a Shape or a list, which is not on the heap; within the memory that it had before nothing is
    // allocated.
    template <typename Lengths = std::initializer_list<int64_t>>
    void resize(const Lengths &shape) {
        shape_.assign(shape.begin(), shape.end());
        bytes_.resize(count(shape_) * kTypes[type_].bytes);
    }

    template <typename T>
    T *data() {
        return const_cast<T *>(std::as_const(*this).template data<T>());
    }
    template <typename T>
    const T *data() const {
        if (sizeof(T) > kTypes[type_].bytes) throw std::invalid_argument(std::string("an array is ") + type_name());
        return reinterpret_cast<const T *>(bytes_.data());
    }

    Type type() const { return type_; }
    const char *type_name() const { return kTypes[type_].name; }
    const Shape &shape() const { return shape_; }
    int64_t rows() const { return shape_.empty() ? 1 : shape_[0]; }
    size_t size() const { return count(shape_); }
    size_t byte_count() const { return bytes_.size(); }
    void clear() { std::fill(bytes_.begin(), bytes_.end(), std::byte{0}); }

   private:
    Type type_ = TESSERA_FLOAT32;
    Shape shape_;
    std::vector<std::byte> bytes_;
};

// Calls `f` with a pointer to the elements, of their type; of bool as bytes.
template <typename Function>
auto visit(const Array &array, const Function &f) {
    switch (array.type()) {
        case TESSERA_FLOAT32:
            return f(array.data<float>());
        case TESSERA_FLOAT64:
            return f(array.data<double>());
        case TESSERA_INT32:
            return f(array.data<int32_t>());
        case TESSERA_INT64:
            return f(array.data<int64_t>());
        default:
            return f(array.data<uint8_t>());
    }
}

using Arrays = std::map<std::string, Array, std::less<>>;

// The array of this name with this shape, of any content; it allocates nothing once there was as large a one.
template <typename T, typename Lengths = std::initializer_list<int64_t>>
T *fill_in(Arrays &arrays, std::string_view name, const Lengths &shape) {
    auto found = arrays.find(name);
    if (found == arrays.end() || found->second.type() != type_of<T>())
        found = arrays.insert_or_assign(std::string(name), Array::of<T>(shape)).first;
    found->second.resize(shape);
    return found->second.data<T>();
}

inline bool all_finite(const float *values, size_t n) {
    uint32_t infinite = 0;  // whether any exponent has all bits; a loop without a branch is several times as fast
    for (size_t i = 0; i < n; ++i) {
        uint32_t bits;
        std::memcpy(&bits, values + i, sizeof bits);
        infinite |= (bits & 0x7f800000U) == 0x7f800000U;
    }
    return infinite == 0;
}

}  // namespace tessera
