// Jobs beyond the live list: pages of all jobs, newest first, loaded as the reader gets there.

const PAGE = 500;
const STRAYS = 1000; // jobs kept that left the live list; above that, a reader at the top starts anew

/** A walk. get(query): resolves to a page of jobs. changed(): called when there are more or other ones. */
export function makeWalk(get, changed) {
  let query = "";
  let pages = []; // {after, next, jobs}, in order
  let strays = new Map();
  let busy = false;
  let trouble = "";
  let generation = 0;

  async function load(after, place) {
    const asked = generation;
    busy = true;
    try {
      const page = await get(`/jobs?${query}&limit=${PAGE}&after=${encodeURIComponent(after)}`);
      if (asked !== generation) return;
      trouble = "";
      const old = pages[place];
      pages[place] = { after, next: page.next, unread: page.unread, jobs: page.jobs };
      if (old) keep(old.jobs, page);
      for (const job of page.jobs) strays.delete(job.id);
    } catch (error) {
      if (asked === generation) trouble = error.message;
    } finally {
      if (asked === generation) busy = false;
    }
    if (asked === generation) changed();
  }

  /** New jobs have pushed others off the end of a page. */
  function keep(before, page) {
    const last = page.jobs.at(-1);
    const now = new Set(page.jobs.map((job) => job.id));
    if (page.next && last) for (const job of before) if (!now.has(job.id) && job.created <= last.created) strays.set(job.id, job);
  }

  return {
    /** Begin anew, for another filter. */
    reset(wanted) {
      generation += 1;
      [query, pages, strays, busy, trouble] = [wanted, [], new Map(), false, ""];
    },
    get begun() {
      return pages.length > 0;
    },
    get complete() {
      return pages.length > 0 && pages.at(-1).next === "" && !pages.at(-1).unread;
    },
    get trouble() {
      return trouble;
    },
    /** Load the next page, unless one is on its way or there is none. The last one again while it may lack jobs. */
    more() {
      const last = pages.at(-1);
      if (busy || this.complete) return;
      if (last?.next === "") load(last.after, pages.length - 1);
      else load(last?.next ?? "", pages.length);
    },
    /** Load the page again that holds one of these jobs. */
    renew(ids) {
      const place = pages.findIndex((page) => page.jobs.some((job) => ids.has(job.id)));
      if (place >= 0 && !busy) load(pages[place].after, place);
    },
    /** Jobs that have left the live list stay in the list that is read. */
    left(jobs, atTop) {
      if (!pages.length) return;
      if (atTop && strays.size > STRAYS) return void this.reset(query);
      const known = new Set(pages.flatMap((page) => page.jobs.map((job) => job.id)));
      for (const job of jobs) if (!known.has(job.id)) strays.set(job.id, job);
    },
    /** All jobs beyond those of the live list, newest first. */
    beyond(head) {
      if (!pages.length) return [];
      const shown = new Set(head.map((job) => job.id));
      const found = [];
      for (const job of [...[...strays.values()].sort((one, other) => other.created - one.created), ...pages.flatMap((page) => page.jobs)]) {
        if (shown.has(job.id)) continue;
        shown.add(job.id);
        found.push(job);
      }
      return found;
    },
  };
}
