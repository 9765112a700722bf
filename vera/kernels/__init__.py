"""VeRA's fast paths, in plain torch, and the cost model that chooses between them.

For T tokens x (T, n) and matrices of M outputs in all that read it, the change b * (B
(d * (A x))) can be computed

    factor        as it is written; A x is shared by the matrices that read x
    hybrid        through W = W0 + (b * B) (d * A), as if it were a plain layer; the gradients of b and d
                  through A x
    materialised  through W likewise; the gradients through G = gy^T x, so that nothing of size T x rank ever
                  exists

Both gradients come from one matrix C = B * (gy^T x A^T): grad_b = C d and grad_d = C^T
b. Beyond the frozen layers a training step costs, in FLOPs, and keeps for the backward
pass, in elements:

    factor        4 T r (M + n)              T (r + M)
    hybrid        2 M n r + 2 T r (M + n)    T n + M n (W kept), or T n and 2 M n r more (W recomputed)
    materialised  4 M n r + 2 T M n          the same
"""

from vera.kernels.group import Group, Workload, added_flops, choose_plan, unchanged
from vera.kernels.merged import KernelPlan, frozen_linear
