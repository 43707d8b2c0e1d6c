// Starts the page. Where the network changes while it loads, browsers give up scripts for good: then it is loaded again.

const AGAIN_MS = 1000;
const TRIES = 10; // in a row; then something else is wrong

try {
  if (!window.uPlot) throw new Error("a script is missing");
  await import("./page.js");
  sessionStorage.removeItem("tries");
  document.getElementById("starting").hidden = true;
} catch (error) {
  console.info(`the page did not start: ${error}`);
  const tries = 1 + Number(sessionStorage.getItem("tries"));
  sessionStorage.setItem("tries", tries);
  if (tries < TRIES) setTimeout(() => location.reload(), AGAIN_MS);
}
