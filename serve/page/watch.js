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
  let cuts = 0;
  const take = (job) => {
    misses = 0;
    onTrouble(false);
    onChange(job);
    return isOver(job);
  };
  while (!signal.aborted) {
    if (cuts < 2 && streams < MAX_STREAMS) {
      streams += 1;
      try {
        for await (const job of events(id, signal)) if (take(job)) return;
        cuts += 1; // It ended early: something on the way cuts streams.
      } catch (error) {
        if (signal.aborted) return;
        if (isFinal(error)) throw error;
        cuts += 1;
      } finally {
        streams -= 1;
      }
    }
    try {
      if (take(await fetchJob(id, signal))) return;
    } catch (error) {
      if (signal.aborted) return;
      if (isFinal(error)) throw error;
      misses += 1;
      onTrouble(true);
    }
    await pause(Math.min(POLL_MS * 2 ** misses, 15_000));
  }
}

/** Whether asking again is in vain. */
const isFinal = (error) => [401, 403, 404].includes(error.status);
