/** I/O domains of a box. */
export const DOMAINS_PER_BOX = 4;
