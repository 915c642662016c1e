// mmcv's CUDA kernels as loops on a CPU, for operators that mmcv has for CUDA only: one thread does it all.
// Built and called by tools/dev/compare_mmcv_ops.py, which also writes a cuda.h with the little of CUDA that the
// kernels' headers ask for (-I FOLDER -I mmcv/ops/csrc/common/cuda).
//
// Every function takes the tensors, whole numbers and other numbers in the order of the kernel's arguments.
#include "carafe_naive_cuda_kernel.cuh"
#include "deform_roi_pool_cuda_kernel.cuh"
#include "masked_conv2d_cuda_kernel.cuh"
#include "ms_deform_attn_cuda_kernel.cuh"
#include "roi_pool_cuda_kernel.cuh"
#include "sigmoid_focal_loss_cuda_kernel.cuh"
#include "softmax_focal_loss_cuda_kernel.cuh"
#include "sync_bn_cuda_kernel.cuh"

struct Any {
  void *pointer;
  template <typename T> operator T *() const { return static_cast<T *>(pointer); }
};

#define KERNEL(name, ...) \
  extern "C" void name(const Any *t, const int *n, const double *x) { __VA_ARGS__; }

#define KERNELS(T, type) \
  KERNEL(roi_pool_forward_##type, \
         roi_pool_forward_cuda_kernel<T>(n[0], t[0], t[1], t[2], t[3], n[1], n[2], x[0], n[3], n[4], n[5])) \
  KERNEL(roi_pool_backward_##type, \
         roi_pool_backward_cuda_kernel<T>(n[0], t[0], t[1], t[2], t[3], n[1], n[2], n[3], n[4], n[5])) \
  KERNEL(deform_roi_pool_forward_##type, \
         deform_roi_pool_forward_cuda_kernel<T>(n[0], t[0], t[1], t[2], t[3], n[1], n[2], x[0], n[3], x[1], \
                                                n[4], n[5], n[6])) \
  KERNEL(deform_roi_pool_backward_##type, \
         deform_roi_pool_backward_cuda_kernel<T>(n[0], t[0], t[1], t[2], t[3], t[4], t[5], n[1], n[2], x[0], \
                                                 n[3], x[1], n[4], n[5], n[6])) \
  KERNEL(carafe_naive_forward_##type, \
         carafe_naive_forward_cuda_kernel<T>(n[0], t[0], t[1], t[2], n[1], n[2], n[3], n[4], n[5], n[6])) \
  KERNEL(carafe_naive_backward_##type, \
         carafe_naive_backward_cuda_kernel<T>(n[0], t[0], t[1], t[2], t[3], t[4], n[1], n[2], n[3], n[4], \
                                              n[5], n[6])) \
  KERNEL(masked_im2col_forward_##type, \
         MaskedIm2colForward<T>(n[0], t[0], n[1], n[2], n[3], n[4], n[5], n[6], t[1], t[2], n[7], t[3])) \
  KERNEL(masked_col2im_forward_##type, \
         MaskedCol2imForward<T>(n[0], t[0], n[1], n[2], n[3], t[1], t[2], n[4], t[3])) \
  KERNEL(sigmoid_focal_loss_forward_##type, \
         sigmoid_focal_loss_forward_cuda_kernel<T>(n[0], t[0], t[1], t[2], t[3], x[0], x[1], n[1])) \
  KERNEL(sigmoid_focal_loss_backward_##type, \
         sigmoid_focal_loss_backward_cuda_kernel<T>(n[0], t[0], t[1], t[2], t[3], x[0], x[1], n[1])) \
  KERNEL(softmax_focal_loss_forward_##type, \
         softmax_focal_loss_forward_cuda_kernel<T>(n[0], t[0], t[1], t[2], t[3], x[0], x[1], n[1])) \
  KERNEL(softmax_focal_loss_backward_##type, \
         softmax_focal_loss_backward_cuda1_kernel<T>(n[0], t[0], t[1], t[2], t[3], x[0], x[1], n[1]); \
         softmax_focal_loss_backward_cuda2_kernel<T>(n[0] * n[1], t[0], t[1], t[3], t[4], n[1])) \
  KERNEL(ms_deform_attn_forward_##type, \
         ms_deformable_im2col_gpu_kernel<T>(n[0], t[0], t[1], t[2], t[3], t[4], n[1], n[2], n[3], n[4], n[5], \
                                            n[6], n[7], t[5])) \
  KERNEL(ms_deform_attn_backward_##type, \
         ms_deformable_col2im_gpu_kernel_gm<T>(n[0], t[5], t[0], t[1], t[2], t[3], t[4], n[1], n[2], n[3], \
                                               n[4], n[5], n[6], n[7], t[6], t[7], t[8]))

KERNELS(float, float32)
KERNELS(double, float64)

// A block for each channel; numbers: images, channels, pixels.
#define CHANNELS(name, call) \
  KERNEL(name, for (blockIdx.x = 0; blockIdx.x < n[1]; ++blockIdx.x) { call; } blockIdx.x = 0)

CHANNELS(sync_bn_forward_mean_float32, sync_bn_forward_mean_cuda_kernel<float>(t[0], t[1], n[0], n[1], n[2]))
CHANNELS(sync_bn_forward_var_float32,
         sync_bn_forward_var_cuda_kernel<float>(t[0], t[1], t[2], n[0], n[1], n[2]))
CHANNELS(sync_bn_forward_output_float32,
         sync_bn_forward_output_cuda_kernel<float>(t[0], t[1], t[2], t[5], t[6], t[3], t[4], t[7], t[8], t[9],
                                                   n[0], n[1], n[2], x[0], x[1], n[3]))
CHANNELS(sync_bn_backward_param_float32,
         sync_bn_backward_param_cuda_kernel<float>(t[0], t[1], t[2], t[3], n[0], n[1], n[2]))
KERNEL(sync_bn_backward_data_float32,
       sync_bn_backward_data_cuda_kernel<float>(n[0] * n[1] * n[2], t[0], t[1], t[2], t[3], t[4], t[5], t[6],
                                                n[0], n[1], n[2]))
