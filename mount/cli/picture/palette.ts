/** The colours of pictures. */

/** Of Okabe and Ito; `light` and `brown` go with them at the ends of their lightness. */
export const PALETTE = {
  light: '#E4E4E4',
  yellow: '#F0E442',
  skyBlue: '#56B4E9',
  orange: '#E69F00',
  green: '#009E73',
  purple: '#CC79A7',
  vermillion: '#D55E00',
  blue: '#0072B2',
  brown: '#6B1A00',
  black: '#000000',
} as const;

/** From light to dark, each as far from the next as can be: yellow over green and blue to violet. */
export const LAYER_RAMP = [
  '#F0E442',
  '#A5DB36',
  '#4AC16D',
  '#1FA187',
  '#277F8E',
  '#365C8D',
  '#46327E',
  '#440154',
] as const;

export const INK = '#222222';
export const FAINT_INK = '#666666';
export const PAPER = '#FFFFFF';
