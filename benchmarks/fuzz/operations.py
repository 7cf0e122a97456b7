"""What a loss is made of: lines that take a square matrix `h` to one of the same shape.

In a line `h` is the matrix and `$c` a coefficient that broadcasts with it. In scope are the
parameters `w` (square), the outer variables `e` (a vector), data `x` (square), and the constants
`N` (the size), `C` (a NumPy vector) and `P` (a NumPy permutation). Every line keeps values near 1.
"""

from __future__ import annotations

COEFFICIENTS = ("e", "e", "jnp.cos(e)", "w[0]", "x[0]", "0.7", "C", "e[0]", "lax.stop_gradient(e)")

ELEMENTWISE = (
    "jnp.sin(h + $c)",
    "jnp.tanh(h) * $c",
    "jnp.exp(-(h**2)) + $c",
    "jnp.log1p(h**2)",
    "jnp.sqrt(1.0 + h**2)",
    "lax.rsqrt(1.0 + h**2)",
    "jnp.cbrt(3.0 + jnp.tanh(h))",
    "jnp.expm1(0.3 * jnp.tanh(h))",
    "jnp.tanh(h) ** 3",
    "jnp.power(1.1 + h**2, $c)",
    "jnp.arctan2(h, 2.0 + jnp.cos($c))",
    "jnp.arcsinh(h) - jnp.arctan($c)",
    "jnp.arccos(0.5 * jnp.tanh(h))",
    "jnp.abs(h - 0.123)",
    "jnp.maximum(h, 0.3 * $c)",
    "jnp.minimum(h, jnp.cos(h) + $c)",
    "jnp.where(h > 0.1, h, 0.3 * h * $c)",
    "jnp.mod(h, 0.71)",
    "h + jnp.floor(3.0 * h)",
    "h * jnp.sign(h - 0.2)",
    "lax.clamp(-0.9, h, 0.9)",
    "h / (1.5 + jnp.cos($c))",
    "lax.stop_gradient(h) * jnp.sin(h)",
    "lax.optimization_barrier(h) + 0.5",
    "jnp.logaddexp(h, $c)",
    "jnp.hypot(h + 2.0, $c)",
    "jnp.sinc(h)",
    "jnp.deg2rad(h) + jnp.square(h) * 0.3",
    "jax.nn.gelu(h)",
    "jax.nn.softplus(h * $c)",
    "jax.nn.silu(h)",
    "jax.nn.relu(h + 0.37)",
    "jax.nn.selu(h - 0.11)",
    "jax.nn.softmax(h * $c)",
    "jax.nn.log_softmax(h, axis=0)",
    "jax.nn.sigmoid(h) * $c",
    "jnp.float64(jnp.float32(2.0)) * h",
)

PRODUCTS = (
    "h @ w",
    "jnp.tanh(w @ h)",
    "jnp.einsum('ij,kj->ik', h, w) * $c",
    "lax.dot_general(h, w, (([], []), ([0], [1]))).sum(1) + h",
    "lax.dot_general(h, w, (([1], [1]), ([0], [0])))[:, None] * h",
    "lax.conv_general_dilated(h[None, None], w[None, None], (1, 1), 'SAME')[0, 0]",
    "lax.conv_general_dilated(h[None, None], C[None, None, None], (1, 1), 'SAME')[0, 0] * $c",
    "jax.vmap(lambda r: jnp.convolve(r, w[0], mode='same'))(h)",
    "jnp.outer(h[0], jnp.cos(h[-1]))",
    "jnp.cross(jnp.pad(h, ((0, 0), (0, 3 - N))), jnp.ones(3) * 0.5)[:, :N]",
)

SHAPES = (
    "h.T * $c",
    "jnp.flip(h, 0) + 0.2 * h",
    "jnp.roll(h, 1, axis=1) * $c",
    "jnp.concatenate([h[1:], jnp.sin(h[:1])])",
    "jnp.pad(h[1:] * $c, ((1, 0), (0, 0)))",
    "jnp.tril(h) + 0.3 * jnp.triu(h) ** 2",
    "jnp.diag(jnp.diag(h)) + jnp.sin(h)",
    "jnp.reshape(jnp.ravel(h)[::-1], (N, N))",
    "jnp.tile(h[:1], (N, 1)) * h",
    "jnp.stack([r * $c for r in h])",
    "jnp.block([[h, h], [h, jnp.sin(h)]])[-N:, -N:]",
)

REDUCTIONS = (
    "h - h.mean()",
    "h / (1.0 + (h**2).sum(0))",
    "h * jnp.max(h, 0)",
    "h - jnp.min(h, 1, keepdims=True) * $c",
    "h * jnp.prod(jnp.tanh(h) + 1.5, 0)",
    "h / jnp.sqrt(0.1 + jnp.var(h, 1, keepdims=True))",
    "h / (0.5 + jnp.linalg.norm(h + 2.0))",
    "h - jax.nn.logsumexp(h, 1, keepdims=True)",
    "h - jnp.median(h, 0)",
    "h + jax.nn.one_hot(jnp.argmax(h, 1), N)",
    "jnp.cumsum(h, 0) * 0.5",
    "jnp.cumprod(jnp.tanh(h) + 1.2, 1)",
    "lax.cummax(h, 0) * $c",
    "lax.cummin(h, 1)",
    "lax.cumlogsumexp(h, 1, reverse=True)",
    "lax.associative_scan(jnp.multiply, jnp.cos(h))",
    "lax.reduce_window(h, -jnp.inf, lax.max, (2, 1), (1, 1), 'SAME')",
    "lax.reduce_window(h, 0.0, lax.add, (2, 2), (1, 1), 'SAME') * 0.4",
    "h * jnp.nanmean(h * $c)",
    "h * jnp.trapezoid(h)",
)

SORTS = (
    "jnp.sort(h, axis=0) * $c",
    "jnp.sort(h, axis=1, descending=True)",
    "lax.sort((h, jnp.cos(h)), dimension=0, num_keys=1)[1]",
    "jnp.take_along_axis(h, jnp.argsort(h, axis=1), axis=1)",
    "lax.top_k(h, N)[0] * h",
    "h - jnp.percentile(h, 30.0)",
    "jnp.interp(h, jnp.linspace(-2.0, 2.0, 4), jnp.array([0.1, 0.9, -0.4, 0.3]))",
)

LINALG = (
    "jnp.linalg.solve(h + 4.0 * jnp.eye(N), w)",
    "jnp.linalg.inv(h + 4.0 * jnp.eye(N)) * $c",
    "h * jnp.linalg.det(h + 2.0 * jnp.eye(N))",
    "h * jnp.linalg.slogdet(h + 3.0 * jnp.eye(N))[1]",
    "jnp.linalg.cholesky(h @ h.T + jnp.eye(N))",
    "jnp.linalg.cholesky(h + 4.0 * jnp.eye(N), symmetrize_input=False)",
    "jnp.linalg.cholesky(0.3 * (h + h.T) + 4.0 * jnp.eye(N), symmetrize_input=False) @ w",
    "jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(h + 4.0 * jnp.eye(N)), w)",
    "jnp.linalg.eigh(h @ h.T + jnp.diag(jnp.arange(N) + 1.0))[1] * $c",
    "jnp.linalg.eigh(h + jnp.diag(3.0 * jnp.arange(N)), symmetrize_input=False)[1]",
    "jnp.linalg.eigh(h + jnp.diag(3.0 * jnp.arange(N)), symmetrize_input=False)[0] * h",
    "jnp.linalg.eigvalsh(h + jnp.diag(3.0 * jnp.arange(N))) * h",
    "jnp.linalg.qr(h + 2.0 * jnp.eye(N))[0] * $c",
    "jnp.linalg.qr(h + 2.0 * jnp.eye(N))[1]",
    "jnp.linalg.svd(h + jnp.diag(jnp.arange(N) + 1.0), compute_uv=False) * h",
    "jnp.linalg.svd(h + jnp.diag(jnp.arange(N) + 1.0))[0]",
    "jnp.linalg.pinv(h + 3.0 * jnp.eye(N))",
    "jax.scipy.linalg.expm(0.3 * h)",
    "jax.scipy.linalg.lu(h + jnp.diag(jnp.arange(N) + 2.0))[2]",
    "jax.scipy.linalg.solve_triangular(h + 3.0 * jnp.eye(N), w, lower=True)",
    "jnp.linalg.matrix_power(jnp.tanh(h), 3)",
    "h * jnp.linalg.norm(h + jnp.eye(N), ord=2)",
    "lax.custom_linear_solve(lambda v: (h + 4.0 * jnp.eye(N)) @ v, w,"
    " lambda _, b: jnp.linalg.solve(h + 4.0 * jnp.eye(N), b),"
    " lambda _, b: jnp.linalg.solve(h.T + 4.0 * jnp.eye(N), b))",
    "lax.custom_linear_solve(lambda v: (h @ h.T + jnp.eye(N)) @ v, w,"
    " lambda _, b: jnp.linalg.solve(h @ h.T + jnp.eye(N), b), symmetric=True)",
    "lax.custom_root(lambda y: y + 0.1 * y**3 - h, h,"
    " lambda f, y: lax.fori_loop(0, 40, lambda _, y: y - f(y) / (1.0 + 0.3 * y**2), y),"
    " lambda g, b: b / g(jnp.ones((N, N))))",
)

SPECIAL = (
    "lax.lgamma(1.5 + h**2)",
    "lax.digamma(2.0 + h**2)",
    "jax.scipy.special.polygamma(1, 2.0 + h**2)",
    "jax.scipy.special.zeta(2.5, 1.5 + h**2)",
    "0.1 * jax.scipy.special.zeta(2.5 + h**2, 1.5)",
    "jax.scipy.special.gammainc(1.7, 0.5 + h**2) * $c",
    "jax.scipy.special.gammainc(1.2 + jnp.square($c), 0.5 + h**2)",
    "jax.scipy.special.gammaincc(1.2 + h**2, 0.9)",
    "jax.scipy.special.betainc(1.5, 2.5, jax.nn.sigmoid(h))",
    "jax.scipy.special.betainc(1.5 + jnp.square($c), 2.5, 0.4 + 0.0 * h)",
    "jax.scipy.special.betaln(1.5 + h**2, 2.0)",
    "jax.scipy.special.erf(h) * $c",
    "jax.scipy.special.erfc(h)",
    "lax.erf_inv(0.5 * jnp.tanh(h))",
    "jax.scipy.special.i0e(h)",
    "jax.scipy.special.i1(h * 0.5)",
    "jax.scipy.special.expi(1.0 + h**2)",
    "jax.scipy.special.ndtri(jax.nn.sigmoid(h))",
    "jax.scipy.special.log_ndtr(h)",
    "jax.scipy.special.xlogy(h, 1.5 + jnp.cos($c))",
    "jax.scipy.special.entr(0.5 + jax.nn.sigmoid(h))",
    "jax.scipy.special.rel_entr(0.5 + h**2, 1.0 + jnp.square($c))",
    "jax.scipy.special.logit(0.2 + 0.6 * jax.nn.sigmoid(h))",
    "jax.scipy.special.gamma(1.5 + jnp.tanh(h) ** 2)",
)

COMPLEX = (
    "jnp.fft.fft(h, axis=0).real * $c",
    "jnp.fft.ifft(h + 1j * jnp.cos(h)).imag",
    "jnp.fft.irfft(jnp.fft.rfft(h) * (1.0 + 0.5j), n=N)",
    "jnp.abs(h + 1j * $c + 2.0)",
    "jnp.exp(1j * h).imag * $c",
    "jnp.sqrt(2.0 + h * 1j).real",
    "jnp.real(jnp.conj(h + 1j) * (h - 0.5j) ** 2) * 0.3",
    "jnp.angle(2.0 + h * 1j)",
    "jnp.linalg.solve(h + (4.0 + 1j) * jnp.eye(N), w.astype(complex)).real",
    "jnp.abs(jnp.linalg.eigh(h @ h.T + jnp.diag(jnp.arange(N)) + 1j * (h - h.T))[1])",
    "jnp.linalg.eigh(h @ h.T + jnp.diag(jnp.arange(N)) + 1j * (h - h.T))[1].real",
    "jnp.linalg.svd(h + jnp.diag(jnp.arange(N) + 1.0) + 0.3j * h.T)[0].imag",
    "jnp.linalg.cholesky(h @ h.T + 0.2j * (h - h.T) + 3.0 * jnp.eye(N)).real",
)

INDEXING = (
    "h[P]",
    "h[:, P] * $c",
    "jnp.take(h, jnp.array([0, 0]), axis=0)[0] + h",
    "jnp.take(h, jnp.array([0, 7]), axis=0, mode='fill', fill_value=0.5)[:1] * h",
    "h.at[0].set(jnp.sin(h[1]))",
    "h.at[P[0], 1].add(h[0, 0] ** 2)",
    "h.at[1].multiply(jnp.cos(h[0]))",
    "h.at[0].max(h[1])",
    "jax.ops.segment_sum(h, np.zeros(N, int), N)",
    "jax.ops.segment_max(h * $c, np.arange(N), N)",
    "lax.dynamic_slice(h, (P[0], 0), (1, N)) * h",
    "lax.dynamic_update_slice(h, jnp.sin(h[:1]), (1, 0))",
    "jnp.choose(np.arange(N) % 2, [h, jnp.cos(h)], mode='clip')",
)

WITH_INTEGERS = (
    "h[i] * h",
    "h.at[i].add(jnp.sin(h[0]))",
    "h.at[i, 0].set(0.4)",
    "lax.dynamic_slice(h, (i, 0), (1, N)) + jnp.sin(h)",
    "lax.dynamic_update_slice(h, h[:1] ** 2, (i, i))",
    "jnp.take_along_axis(h, jnp.full((N, 1), i), axis=1) * h",
    "h * i.astype(float) + $c",
    "jax.nn.one_hot(i, N) * h + 0.3 * h",
    "jnp.where(jnp.arange(N) == i, h, jnp.sin(h))",
    "lax.switch(i, [jnp.sin, lambda h: h * h, jnp.tanh], h)",
)

WITH_KEYS = (
    "h + 0.1 * jax.random.normal(key, (N, N))",
    "h * jax.random.bernoulli(key, 0.6, (N, N))",
    "h * jax.random.uniform(jax.random.fold_in(key, 3), (N,)) * $c",
    "jax.random.permutation(key, h, axis=0)",
    "h[jax.random.randint(key, (N,), 0, N)]",
    "h + jax.random.normal(jax.random.split(key)[1], (N, N)) * jnp.exp($c)",
    "h + jax.nn.one_hot(jax.random.categorical(key, h), N)",
)

IN_HALF = (
    "jnp.sin(h.astype(HALF)).astype(h.dtype)",
    "(h.astype(HALF) @ w.astype(HALF)).astype(float)",
    "jax.nn.softmax(h.astype(HALF)).astype(float) * $c",
    "jnp.tanh(2 * h.astype(HALF) + 1).astype(h.dtype)",
    "jnp.sin(h.astype(jnp.float32)).astype(float) * $c",
)

QUIET = (
    "h * lax.stop_gradient(lax.while_loop(lambda s: s < 4.0, lambda s: 2.0 * s, 1.0 + e[0] ** 2))",
    "h * lax.while_loop(lambda s: s[0] < 2, lambda s: (s[0] + 1, s[1] * 0.7), (0, x[0]))[1]",
    "h * lax.stop_gradient(jnp.sort(jnp.sin(w) * $c, axis=0))",
    "h * jnp.round(2.0 * $c)",
)

GROUPS: dict[str, tuple[str, ...]] = {
    "elementwise": ELEMENTWISE,
    "products": PRODUCTS,
    "shapes": SHAPES,
    "reductions": REDUCTIONS,
    "sorts": SORTS,
    "linalg": LINALG,
    "special": SPECIAL,
    "complex": COMPLEX,
    "indexing": INDEXING,
    "quiet": QUIET,
}
"""Lines that any loss may hold; the others need an argument or a constant more."""
