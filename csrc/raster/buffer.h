// Working memory that is kept between calls: it only grows, and starts uninitialized.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>

#include "levels/level.h"

namespace splatdistill::raster::SPLATDISTILL_LEVEL {

template <class T>
class Buffer {
  public:
    // Room for `count` values; what was there is lost when it has to grow.
    T* reserve(int64_t count) {
        if (count > size_) {
            size_ = std::max(count, size_ + size_ / 2);
            data_.reset();
            data_.reset(new T[size_]);
        }
        return data_.get();
    }

    // Room for `count` values; the first `used` stay.
    T* extend(int64_t count, int64_t used) {
        if (count > size_) {
            std::unique_ptr<T[]> old = std::move(data_);
            std::copy(old.get(), old.get() + used, reserve(count));
        }
        return data_.get();
    }

    T* data() const { return data_.get(); }

  private:
    std::unique_ptr<T[]> data_;
    int64_t size_ = 0;
};

}  // namespace splatdistill::raster::SPLATDISTILL_LEVEL
