// Follows a job until it is over.

import { events, job as fetchJob } from "./api.js";

// A browser opens six connections to a server; streams may not take them all.
const MAX_STREAMS = 3;
const POLL_MS = 1500;
let streams = 0;

export const isOver = (job) => ["completed", "failed", "cancelled"].includes(job.status);

const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));

/**
 * Calls `onChange(job)` until the job is over, by events where it can and by asking where it cannot.
 * `onTrouble(true)` says that the server does not answer, `onTrouble(false)` that it does again.
 * Raises the `ApiError` of a job that is not there, or not ours.
 */
export async function watch(id, onChange, onTrouble, signal) {
  let misses = 0;
  let canStream = true;
  while (!signal.aborted) {
    try {
      if (canStream && streams < MAX_STREAMS) {
        streams += 1;
        try {
          for await (const job of events(id, signal)) {
            onTrouble(false);
            misses = 0;
            onChange(job);
            if (isOver(job)) return;
          }
        } finally {
          streams -= 1;
        }
        canStream = false; // It ended early: something on the way cuts streams.
      }
      const job = await fetchJob(id, signal);
      onTrouble(false);
      misses = 0;
      onChange(job);
      if (isOver(job)) return;
    } catch (error) {
      if (signal.aborted) return;
      if ([401, 403, 404].includes(error.status)) throw error;
      misses += 1;
      canStream = misses < 2;
      onTrouble(true);
    }
    await pause(Math.min(POLL_MS * 2 ** misses, 15_000));
  }
}
