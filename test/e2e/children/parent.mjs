// Brings its own daemon, as the demo does, and waits to be killed.
const [, , index] = process.argv;
const { startChildDaemon } = await import(new URL('./kvss/child_daemon.js', `file://${index}`).href);
const daemon = await startChildDaemon([2 ** 22], false);
process.send({ pid: daemon.pid });
setInterval(() => {}, 1000);
