import { availableParallelism } from 'node:os';
import { fileURLToPath } from 'node:url';
import { Piscina } from 'piscina';

export interface WorkerOptions {
  /** Worker threads; as many as there are cores if left out. */
  readonly workers?: number;
  /** Ends the work: tasks that have begun are stopped too. */
  readonly signal?: AbortSignal;
  /** After each task, with how many are done. */
  readonly onProgress?: (done: number) => void;
}

/**
 * Runs every task in a worker thread, and answers the results in the order of the tasks: how many workers there are changes
 * nothing but the time. `worker` is a module of ours as it is compiled, whose default export takes a task and answers its result.
 * Rejects as soon as a task fails, and with an AbortError when the signal says so.
 */
export async function runInWorkers<Task, Result>(
  worker: URL,
  tasks: readonly Task[],
  { workers = availableParallelism(), signal, onProgress }: WorkerOptions = {},
): Promise<Result[]> {
  signal?.throwIfAborted();
  const threads = Math.max(1, Math.min(workers, tasks.length));
  const pool = new Piscina<Task, Result>({ filename: fileURLToPath(worker), minThreads: threads, maxThreads: threads });
  // Ends the worker threads with the tasks that they are at.
  const stop = () => void pool.destroy();
  signal?.addEventListener('abort', stop);
  let done = 0;
  try {
    return await Promise.all(
      tasks.map(async (task) => {
        const result = await pool.run(task);
        done += 1;
        onProgress?.(done);
        return result;
      }),
    );
  } catch (thrown) {
    signal?.throwIfAborted();
    throw thrown;
  } finally {
    signal?.removeEventListener('abort', stop);
    await pool.destroy();
  }
}
