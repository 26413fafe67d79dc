"use strict";
// One button starts all videos of a case together, from the beginning; the shorter ones wait for the longest.
for (const article of document.querySelectorAll("article.case")) {
  const button = article.querySelector("button.play");
  const videos = [...article.querySelectorAll("video")];
  if (!button || videos.length < 2) continue;
  let together = false;
  const show = (playing) => {
    together = playing;
    button.textContent = playing ? "Pause" : "Play together";
    button.setAttribute("aria-pressed", String(playing));
    for (const video of videos) video.loop = !playing;
  };
  const start = () => {
    show(true);
    for (const video of videos) {
      video.currentTime = 0;
      video.play().catch(() => show(false));
    }
  };
  button.addEventListener("click", () => {
    if (together) {
      show(false);
      for (const video of videos) video.pause();
    } else {
      start();
    }
  });
  for (const video of videos) {
    video.addEventListener("ended", () => {
      if (together && videos.every((one) => one.ended)) start();
    });
  }
}
