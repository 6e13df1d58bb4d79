/* Kinematics of the Franka Panda as the shared library that a control unit of research interface 5 sends to its client.
 *
 * Modified Denavit-Hartenberg parameters as published by Franka. Matrices are column-major. The frames 1..7 follow the joints, 8 is the
 * flange, 9 the end effector, given by its pose F_T_EE in the flange. Dynamics are those of dynamics.py: one inertia per joint, no
 * Coriolis forces, no gravity. */
#include <math.h>
#include <string.h>

#define FLANGE 8
#define END_EFFECTOR 9

static const double A[8] = {0, 0, 0, 0.0825, -0.0825, 0, 0.088, 0};
static const double D[8] = {0.333, 0, 0.316, 0, 0.384, 0, 0, 0.107};
static const double ALPHA[8] = {0, -M_PI_2, M_PI_2, M_PI_2, -M_PI_2, M_PI_2, M_PI_2, 0};
static const double ZERO[7] = {0};
const double INERTIA[7] = {1.2, 1.4, 0.9, 0.9, 0.12, 0.12, 0.08};

static void multiply(const double *left, const double *right, double *product) {
  double result[16];
  for (int column = 0; column < 4; column++)
    for (int row = 0; row < 4; row++) {
      double sum = 0;
      for (int k = 0; k < 4; k++) sum += left[4 * k + row] * right[4 * column + k];
      result[4 * column + row] = sum;
    }
  memcpy(product, result, sizeof result);
}

/* The poses of the frames 1..8 in the base. */
static void chain(const double *q, double frames[FLANGE][16]) {
  double pose[16] = {1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1};
  for (int i = 0; i < FLANGE; i++) {
    double angle = i < 7 ? q[i] : 0, c = cos(angle), s = sin(angle), ca = cos(ALPHA[i]), sa = sin(ALPHA[i]);
    double link[16] = {c, s * ca, s * sa, 0, -s, c * ca, c * sa, 0, 0, -sa, ca, 0, A[i], -D[i] * sa, D[i] * ca, 1};
    multiply(pose, link, pose);
    memcpy(frames[i], pose, sizeof pose);
  }
}

static void pose_of(const double *q, int frame, const double *flange_to_ee, double *pose) {
  double frames[FLANGE][16];
  chain(q, frames);
  if (frame == END_EFFECTOR)
    multiply(frames[FLANGE - 1], flange_to_ee, pose);
  else
    memcpy(pose, frames[frame - 1], sizeof frames[0]);
}

/* Linear over angular velocity of the frame's origin per joint velocity; in the base, or in the frame itself (body). */
static void jacobian_of(const double *q, int frame, const double *flange_to_ee, int body, double *jacobian) {
  double frames[FLANGE][16], pose[16];
  chain(q, frames);
  pose_of(q, frame, flange_to_ee, pose);
  memset(jacobian, 0, 42 * sizeof(double));
  for (int i = 0; i < 7 && i < frame; i++) {
    const double *z = &frames[i][8], *origin = &frames[i][12];
    double p[3] = {pose[12] - origin[0], pose[13] - origin[1], pose[14] - origin[2]};
    double column[6] = {z[1] * p[2] - z[2] * p[1], z[2] * p[0] - z[0] * p[2], z[0] * p[1] - z[1] * p[0], z[0], z[1], z[2]};
    for (int r = 0; r < 3; r++)
      for (int half = 0; half < 2; half++) {
        const double *v = &column[3 * half];
        jacobian[6 * i + 3 * half + r] = body ? pose[4 * r] * v[0] + pose[4 * r + 1] * v[1] + pose[4 * r + 2] * v[2] : v[r];
      }
  }
}

#define POSE(n) \
  void O_T_J##n(const double q[7], double pose[16]) { pose_of(q, n, 0, pose); }
POSE(1) POSE(2) POSE(3) POSE(4) POSE(5) POSE(6) POSE(7) POSE(8)

#define JACOBIANS(n)                                                                \
  void O_J_J##n(const double q[7], double j[42]) { jacobian_of(q, n, 0, 0, j); }    \
  void Ji_J_J##n(const double q[7], double j[42]) { jacobian_of(q, n, 0, 1, j); }
JACOBIANS(2) JACOBIANS(3) JACOBIANS(4) JACOBIANS(5) JACOBIANS(6) JACOBIANS(7) JACOBIANS(8)

/* Of the first joint they do not depend on its position, and the interface leaves it out. */
void O_J_J1(double j[42]) { jacobian_of(ZERO, 1, 0, 0, j); }
void Ji_J_J1(double j[42]) { jacobian_of(ZERO, 1, 0, 1, j); }

void O_T_J9(const double q[7], const double f_t_ee[16], double pose[16]) { pose_of(q, 9, f_t_ee, pose); }
void O_J_J9(const double q[7], const double f_t_ee[16], double j[42]) { jacobian_of(q, 9, f_t_ee, 0, j); }
void Ji_J_J9(const double q[7], const double f_t_ee[16], double j[42]) { jacobian_of(q, 9, f_t_ee, 1, j); }

void M_NE(const double q[7], const double inertia[9], double mass, const double center[3], double m[49]) {
  memset(m, 0, 49 * sizeof(double));
  for (int i = 0; i < 7; i++) m[8 * i] = INERTIA[i];
}

void c_NE(const double q[7], const double dq[7], const double inertia[9], double mass, const double center[3], double c[7]) {
  memset(c, 0, 7 * sizeof(double));
}

void g_NE(const double q[7], const double gravity[3], double mass, const double center[3], double g[7]) {
  memset(g, 0, 7 * sizeof(double));
}
