// What the times of an answer say, and how near two pictures are.

/** Return the seconds of all engine calls that a picture was in. */
export function engineSeconds(timings) {
  return Object.values(timings.stages).reduce((sum, stage) => sum + stage.seconds, 0);
}

/**
 * Return how many times as fast the second of two pictures was.
 *
 * A server remembers texts, so that the second one's are not encoded again: both are taken to have
 * encoded them.
 */
export function speedup(one, other) {
  const texts = timings => timings.stages.encode?.seconds ?? 0;
  const both = Math.max(texts(one), texts(other));
  const rest = timings => engineSeconds(timings) - texts(timings) + both;
  return rest(one) / rest(other);
}

/** Whether other requests took part in the engine calls, so that their times are not its own. */
export function isShared(timings) {
  return Object.values(timings.stages).some(stage => stage.mean_batch > 1.001);
}

/** Say a time in about three digits. */
export function seconds(value) {
  if (value < 0.9995) return `${Math.round(1000 * value)} ms`;
  return value < 99.95 ? `${value.toPrecision(3)} s` : `${Math.round(value)} s`;
}

/** Return the peak signal-to-noise ratio of two pictures in dB, from their 8-bit colours. */
export async function psnr(one, other) {
  const [a, b] = await Promise.all([pixels(one), pixels(other)]);
  if (a.width !== b.width || a.height !== b.height) return undefined;
  let sum = 0;
  for (let at = 0; at < a.data.length; at += 4)
    for (let channel = 0; channel < 3; channel++)
      sum += (a.data[at + channel] - b.data[at + channel]) ** 2;
  return 10 * Math.log10(255 ** 2 / (sum / ((a.data.length / 4) * 3)));
}

async function pixels(png) {
  const bitmap = await createImageBitmap(png);
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  return context.getImageData(0, 0, canvas.width, canvas.height);
}
